"""What figures mean on MLX's default device: memory of a call, and the rate that it can reach."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

from qwen_mfa.errors import LibraryError
from qwen_mfa.native import library
from qwen_mfa.problem import MLX_DTYPES, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch
SIDE = 4096  # of the square matrices whose product a GPU's rate is taken from
_PRODUCTS = 8  # in a row, so that the wait for the device does not count
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def is_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def peak_rate(dtype: str) -> float | None:
    """Return the operations a second that the default device can reach, or ``None``.

    On a CPU: independent multiply-adds of ``dtype`` with the fastest unit for them, as the native
    library counts them. On a GPU: the product
    of two square matrices of ``dtype`` through MLX, which is what attention is made of there.
    """
    if is_gpu():
        return _product_rate(dtype)
    try:
        return library.load().peak(PRECISIONS[dtype])
    except LibraryError:
        return None


def peak_means() -> str:
    """Say what `peak_rate` measures here."""
    return f"product of {SIDE} x {SIDE} matrices" if is_gpu() else "multiply-adds"


def growth(work: Callable[[], T]) -> tuple[T, int | None]:
    """Run ``work``; return its result, and the bytes that its peak added to what was there.

    On a GPU: of what MLX allocated. On a CPU: of resident memory, or ``None`` where the system
    cannot forget an earlier peak (macOS), so that too little would be shown.
    """
    mx.clear_cache()
    if is_gpu():
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = work()
        return result, max(0, mx.get_peak_memory() - before)
    if SYSTEM != "linux" or not _CLEAR_REFS.exists():
        return work(), None
    _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    before = peak_resident()
    result = work()
    return result, max(0, peak_resident() - before)


def peak_resident() -> int:
    """Return the peak resident set size of this process, in bytes."""
    if SYSTEM == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts it in bytes


def _product_rate(dtype: str) -> float:
    a, b = (
        # Products keep this size, so that none overflows.
        mx.random.normal((SIDE, SIDE), scale=SIDE**-0.5, key=key).astype(MLX_DTYPES[dtype])
        for key in mx.random.split(mx.random.key(1))
    )
    mx.eval(a, b, a @ b)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(_PRODUCTS):
            b = a @ b
        mx.eval(b)
        times.append(time.perf_counter() - start)
    return float(_PRODUCTS * 2 * SIDE**3 / min(times))
