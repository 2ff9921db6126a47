"""Interleaved rounds: every contestant once a round, in an order that changes.

What slows the machine down then slows all of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of a quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise ``values`` (one or more)."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Times of every contestant, in seconds, by name; position i is round i."""

    times: dict[str, list[float]]

    def time(self, name: str) -> Spread:
        """Return the spread of ``name``'s time, in seconds."""
        return Spread.of(self.times[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """Return the spread of time(slow) / time(fast), each taken within one round."""
        pairs = zip(self.times[slow], self.times[fast], strict=True)
        return Spread.of([a / b for a, b in pairs])


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    settle: float = 0.0,
    repeats: Mapping[str, int] | None = None,
    within: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Rounds]:
    """Time ``contestants`` in ``rounds`` rounds after ``warm_up`` unmeasured ones.

    Args:
        contestants: Name to work; the work must be done (evaluated) when it returns.
        rounds: Measured rounds.
        warm_up: Unmeasured rounds.
        settle: Seconds to wait before each: some libraries' threads spin on after their work is
            done, and would slow down whoever comes next.
        repeats: Calls in a row, timed together after an untimed one, of contestants that are too
            quick to be timed one at a time: waking up after the pause would weigh too much. Times
            are for one call.
        within: What each name's work runs in; entering and leaving it is not timed.

    Yields:
        All times so far, after every measured round.

    """
    names = list(contestants)
    calls = {name: (repeats or {}).get(name, 1) for name in names}
    order = random.Random(0)  # noqa: S311 - not a secret
    for _ in range(warm_up):
        for name in names:
            with within(name):
                contestants[name]()
    measured = Rounds(times={name: [] for name in names})
    for _ in range(rounds if names else 0):
        # Nobody always runs after the same neighbour, and every run has the same order.
        for name in order.sample(names, len(names)):
            time.sleep(settle)
            work = contestants[name]
            with within(name):
                if calls[name] > 1:
                    work()  # wakes its threads
                start = time.perf_counter()
                for _ in range(calls[name]):
                    work()
                measured.times[name].append((time.perf_counter() - start) / calls[name])
        yield measured


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    repeats: Mapping[str, int] | None = None,
    on_round: Callable[[int, Rounds], None] | None = None,
) -> Rounds:
    """Return all times of `interleaved`; ``on_round`` is called with each round's number from 1."""
    measured = Rounds(times={name: [] for name in contestants})
    steps = interleaved(contestants, rounds=rounds, warm_up=warm_up, repeats=repeats)
    for number, measured in enumerate(steps, 1):
        if on_round is not None:
            on_round(number, measured)
    return measured
