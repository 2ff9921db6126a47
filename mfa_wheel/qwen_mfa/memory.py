"""Peak memory of one piece of work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def peak_of(work: Callable[[], T]) -> tuple[T, int, str]:
    """Run ``work`` and return its result, its peak memory in bytes, and what that figure is.

    On Linux, the growth of the resident set (``VmHWM``), which sees native code too. Elsewhere,
    the growth of MLX's own allocations, which does not.
    """
    mx.clear_cache()  # or MLX would serve it from what it has kept
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        before = _status("VmRSS")
    except OSError:
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        result = work()
        return result, max(0, mx.get_peak_memory() - held), "MLX allocations"
    result = work()
    return result, max(0, _status("VmHWM") - before), "resident memory"


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    msg = f"{_STATUS} has no {field}"
    raise OSError(msg)
