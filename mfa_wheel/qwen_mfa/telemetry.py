"""Tells subscribers which kernel ran for which problem, and keeps the counters of `stats`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_mfa import counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.problem import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that `qwen_mfa.scaled_dot_product_attention` did.

    Attributes:
        problem: What was asked for; ``None`` for a call that MLX had to judge.
        kernel: The kernel that ran, or ``None`` when padded keys were removed: then the calls for
            the keys that are left follow as events of their own.
        reason: Why this one.
        seconds: Wall-clock time of an eager kernel; ``None`` for MLX's, which computes later.

    """

    problem: Problem | None
    kernel: str | None
    reason: str
    seconds: float | None = None


_subscribers: tuple[Callable[[Event], None], ...] = ()
_lock = threading.Lock()


def subscribe(subscriber: Callable[[Event], None]) -> Callable[[], None]:
    """Call ``subscriber`` with every event, on the thread that attends; return how to stop that."""
    global _subscribers  # noqa: PLW0603 - replaced whole, so that readers need no lock
    with _lock:
        _subscribers = (*_subscribers, subscriber)

    def unsubscribe() -> None:
        global _subscribers  # noqa: PLW0603
        with _lock:
            _subscribers = tuple(s for s in _subscribers if s is not subscriber)

    return unsubscribe


def wanted() -> bool:
    """Whether anybody listens."""
    return bool(_subscribers)


def emit(event: Event) -> None:
    """Hand ``event`` to the subscribers."""
    for subscriber in _subscribers:
        subscriber(event)


def record(
    problem: Problem | None, kernel: str | None, reason: str, seconds: float | None = None
) -> None:
    """Count one call, and tell subscribers, if any."""
    counters.count(kernel, reason)
    if _subscribers:
        emit(Event(problem=problem, kernel=kernel, reason=reason, seconds=seconds))
