"""Tells subscribers which kernel ran for which problem, and counts it: behind `qwen_mfa.stats`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwen_mfa import forks
from qwen_mfa.selection import session
from qwen_mfa.tally import Tally

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

    Examples:
        >>> event = qwen_mfa.Event(problem=None, kernel="mlx", reason="MLX judges this call")
        >>> event.kernel, event.seconds
        ('mlx', None)

    """

    problem: Problem | None
    kernel: str | None
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What `qwen_mfa.scaled_dot_product_attention` did in this process so far.

    Attributes:
        calls: Calls by kernel name. Calls whose padding was removed are not among them, the calls
            for the keys that were left are.
        reasons: The same by kernel and reason; ``None`` for removed padding.
        quarantined: Kernels that failed, with what happened; they are not used any more.
        parts: What integrations did around attention, by part and what became of it.

    Examples:
        >>> qwen_mfa.stats().quarantined
        {}

    """

    calls: dict[str, int]
    reasons: dict[tuple[str | None, str], int]
    quarantined: dict[str, str]
    parts: dict[tuple[str, str], int] = field(default_factory=dict)


class Recorder:
    """Counts and subscribers of one process.

    Attributes:
        subscribers: Replaced whole, so that readers need no lock.

    """

    def __init__(self) -> None:
        self.subscribers: tuple[Callable[[Event], None], ...] = ()
        self._tallies: dict[tuple[str | None, str], Tally] = {}
        self._parts: dict[tuple[str, str], int] = {}
        self._lock = forks.lock()

    def clear(self) -> None:
        """Begin anew: nothing counted, nobody subscribed. Tallies that were given out go on."""
        with self._lock:
            self.subscribers, self._parts = (), {}
            for tally in self._tallies.values():
                tally.clear()

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``subscriber`` with every event; return how to stop that."""
        with self._lock:
            self.subscribers = (*self.subscribers, subscriber)

        def unsubscribe() -> None:
            with self._lock:
                self.subscribers = tuple(s for s in self.subscribers if s is not subscriber)

        return unsubscribe

    def tally(self, kernel: str | None, reason: str) -> Tally:
        """Return what counts the calls of ``kernel`` for ``reason``."""
        found = self._tallies.get((kernel, reason))
        if found is None:
            with self._lock:
                found = self._tallies.setdefault((kernel, reason), Tally())
        return found

    def count_part(self, part: str, outcome: str, number: int) -> None:
        """Count what became of a part of an integration."""
        with self._lock:
            self._parts[part, outcome] = self._parts.get((part, outcome), 0) + number

    def stats(self) -> Stats:
        """Return the counts."""
        with self._lock:
            counts = {key: tally.read() for key, tally in self._tallies.items()}
            parts = dict(self._parts)
        reasons = {key: number for key, number in counts.items() if number}
        calls: dict[str, int] = {}
        for (kernel, _), number in reasons.items():
            if kernel is not None:
                calls[kernel] = calls.get(kernel, 0) + number
        quarantined = dict(session.current.quarantined)
        return Stats(calls=calls, reasons=reasons, quarantined=quarantined, parts=parts)


recorder = Recorder()


def start() -> None:
    """Begin anew: nothing counted, nobody subscribed."""
    recorder.clear()


def subscribe(subscriber: Callable[[Event], None]) -> Callable[[], None]:
    """Call ``subscriber`` with every event, on the thread that attends; return how to stop that.

    Examples:
        >>> seen = []
        >>> stop = qwen_mfa.subscribe(seen.append)
        >>> q = mx.random.normal((1, 2, 5, 16))
        >>> with qwen_mfa.use("mlx"):
        ...     out = qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.25)
        >>> stop()
        >>> [event.kernel for event in seen]
        ['mlx']

    """
    return recorder.subscribe(subscriber)


def stats() -> Stats:
    """Return what ran how often in this process. `qwen_mfa.subscribe` tells it call by call.

    Examples:
        >>> before = sum(qwen_mfa.stats().calls.values())
        >>> q = mx.random.normal((1, 2, 5, 16))
        >>> out = qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.25)
        >>> sum(qwen_mfa.stats().calls.values()) - before
        1

    """
    return recorder.stats()


def count_part(part: str, outcome: str, number: int = 1) -> None:
    """Count ``number`` times that a part of an integration had this outcome."""
    recorder.count_part(part, outcome, number)


def record(
    problem: Problem | None, kernel: str | None, reason: str, seconds: float | None = None
) -> None:
    """Count one call, and tell subscribers, if any."""
    recorder.tally(kernel, reason).add()
    if recorder.subscribers:
        event = Event(problem=problem, kernel=kernel, reason=reason, seconds=seconds)
        for subscriber in recorder.subscribers:
            subscriber(event)
