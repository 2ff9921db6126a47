"""Counts what ran how often: behind `qwen_mfa.stats`."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

_counts: dict[tuple[str | None, str], int] = {}
_parts: dict[tuple[str, str], int] = {}
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What `qwen_mfa.scaled_dot_product_attention` did in this process so far.

    Attributes:
        calls: Calls by kernel name. Calls whose padding was removed are not among them, the calls
            for the keys that were left are.
        reasons: The same by kernel and reason; ``None`` for removed padding.
        quarantined: Kernels that failed, with what happened; they are not used any more.
        parts: What integrations did around attention, by part and what became of it.

    """

    calls: dict[str, int]
    reasons: dict[tuple[str | None, str], int]
    quarantined: dict[str, str]
    parts: dict[tuple[str, str], int] = field(default_factory=dict)


def count(kernel: str | None, reason: str) -> None:
    """Add one call."""
    with _lock:
        _counts[kernel, reason] = _counts.get((kernel, reason), 0) + 1


def count_part(part: str, outcome: str, number: int = 1) -> None:
    """Add ``number`` times that a part of an integration had this outcome."""
    with _lock:
        _parts[part, outcome] = _parts.get((part, outcome), 0) + number


def stats() -> Stats:
    """Return what ran how often in this process. `qwen_mfa.subscribe` tells it call by call."""
    from qwen_mfa.selection import choose  # noqa: PLC0415 - which counts

    with _lock:
        reasons, parts = dict(_counts), dict(_parts)
    calls: dict[str, int] = {}
    for (kernel, _), number in reasons.items():
        if kernel is not None:
            calls[kernel] = calls.get(kernel, 0) + number
    return Stats(calls=calls, reasons=reasons, quarantined=choose.quarantined(), parts=parts)


def reset() -> None:
    """Start from zero."""
    with _lock:
        _counts.clear()
        _parts.clear()


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)  # a hook only: nothing runs until a fork
