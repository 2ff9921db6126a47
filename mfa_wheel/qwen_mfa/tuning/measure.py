"""Measures whether a kernel is faster than MLX for a class of problems: paired and bounded.

Kernel and MLX run in turn, each pair in the other order, after one warm run of both. The quantity
is the median of log(MLX / kernel) over the pairs. Its noise is the distance to the lower end of its
confidence interval, 99 % one-sided, which takes no distribution for granted (the sign test's: a
certain one of the sorted values), and never less than 2 %. A kernel wins only by more than the
noise, and only if it does at both ends of the class.

The cost is bounded: about `BUDGET` seconds for each end, `PERSISTENCE` times that where a kernel
that seems faster is in doubt. Where a problem would take longer, a
smaller one of its kind (fewer heads, but at least one a processor; then shorter) is measured
instead, and then the kernel must win by `EXTRAPOLATION` more.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import machine
from qwen_mfa.kernels import mlx
from qwen_mfa.transforms import autodiff
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.variants import resized

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Kernel
    from qwen_mfa.problem import Problem

    Work = Callable[[], mx.array]
    # Makes two ways to compute the same of a problem: the one that wants to win, and the other.
    Ways = Callable[[Problem], tuple[Work, Work]]

BUDGET = 0.8  # seconds for one end of a class
PERSISTENCE = 3  # times that, where the kernel seems faster and noise leaves it in doubt
MIN_PAIRS, MAX_PAIRS = 7, 40
DOUBT = 0.01  # seven pairs of seven are beyond it: 2^-7
CLEAR = math.log(1.5)  # when all pairs say so, the least number of them is enough
FLOOR = 0.02
EXTRAPOLATION = math.log(1.25)
_FIRST_LOOK = 1 << 26  # operations: some 30 ms where attention runs at 2 GFLOP/s
_GROWTH = 1.5  # what a further step has to bring


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One problem, measured.

    Attributes:
        problem: In words.
        seconds: Median time of the kernel, or of what else wants to win.
        seconds_mlx: Median time of MLX, or of what else is there already.
        gain: Median of log(MLX / kernel); positive when the kernel is faster.
        noise: What ``gain`` must exceed to be believed.
        pairs: How many were run.
        reduced: Whether it is smaller than the end of the class that it stands for.

    """

    problem: str
    seconds: float
    seconds_mlx: float
    gain: float
    noise: float
    pairs: int
    reduced: bool

    @property
    def wins(self) -> bool:
        """Whether the kernel was faster beyond doubt."""
        return self.gain > self.noise + (EXTRAPOLATION if self.reduced else 0.0)

    @property
    def ratio(self) -> str:
        """Return how fast the kernel was, for people."""
        least = math.exp(self.gain - self.noise)
        return f"{math.exp(self.gain):.2f} x MLX's speed (at least {least:.2f})"

    def __str__(self) -> str:
        smaller = ", smaller than its class" if self.reduced else ""
        return f"{self.ratio} at {self.problem}{smaller}"


def measure(
    kernel: Kernel,
    ends: tuple[Problem, Problem],
    *,
    budget: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Compare ``kernel`` with MLX at both ends of a class; stop when the first end is lost.

    Args:
        kernel: The kernel.
        ends: The smallest and the largest problem of the class.
        budget: Seconds for each end; `BUDGET` by default.
        clock: Gives seconds.

    Raises:
        QwenMfaError: The kernel failed.

    """

    def ways(problem: Problem) -> tuple[Work, Work]:
        call = draw(problem).call

        def ours() -> mx.array:
            autodiff.evaluate(call)
            return autodiff.differentiable(call, kernel.run)

        return ours, lambda: mlx.run(call)

    return compare(ways, ends, budget=budget, clock=clock)


def compare(
    ways: Ways,
    ends: tuple[Problem, Problem],
    *,
    budget: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Compare two ways at both ends of a class; stop when the first end is lost.

    Args:
        ways: Makes both for a problem.
        ends: The smallest and the largest problem of the class.
        budget: Seconds for each end; `BUDGET` by default.
        clock: Gives seconds.

    Raises:
        QwenMfaError: A kernel failed.

    """
    samples: list[Sample] = []
    for end in dict.fromkeys(ends):
        sample = _compare(ways, end, BUDGET if budget is None else budget, clock)
        samples.append(sample)
        # The other end of a class that had to be reduced would be reduced to the same.
        if sample.reduced or not sample.wins:
            break
    return samples


def _compare(ways: Ways, end: Problem, budget: float, clock: Callable[[], float]) -> Sample:
    chosen, run = _affordable(ways, end, budget / (MIN_PAIRS + 2), clock)
    pairs = _pairs(run, budget, clock)
    ratios = sorted(math.log(theirs / ours) for ours, theirs in pairs)
    gain = statistics.median(ratios)
    return Sample(
        problem=str(chosen),
        seconds=statistics.median(ours for ours, _ in pairs),
        seconds_mlx=statistics.median(theirs for _, theirs in pairs),
        gain=gain,
        noise=max(FLOOR, gain - ratios[_rank(len(ratios))]),
        pairs=len(pairs),
        reduced=chosen != end,
    )


def _affordable(
    ways: Ways, end: Problem, seconds: float, clock: Callable[[], float]
) -> tuple[Problem, Callable[..., tuple[float, float]]]:
    """Return ``end``, or the largest of its kind of which a pair takes ``seconds``; and its runner.

    In steps, from a small one on: where small problems take as long as large ones, as on GPUs, the
    first says little about the last.
    """
    chosen = shrink(end, _FIRST_LOOK)
    while True:
        run = _runner(ways(chosen), clock)
        run()
        if chosen == end:
            return chosen, run
        pair = sum(run())
        if pair * end.flops / chosen.flops <= seconds:
            chosen = end
            continue
        larger = shrink(end, int(chosen.flops * seconds / pair))
        if larger.flops < _GROWTH * chosen.flops:
            return chosen, run
        chosen = larger


def _in_doubt(logs: list[float]) -> bool:
    gain = statistics.median(logs)
    return 0 < gain <= max(FLOOR, gain - sorted(logs)[_rank(len(logs))])


def _rank(count: int) -> int:
    """Return which of ``count`` sorted values the median exceeds but for a chance of `DOUBT`."""
    chance, rank = 0.0, -1
    while rank < count // 2:
        chance += math.comb(count, rank + 1) / 2**count
        if chance > DOUBT:
            break
        rank += 1
    return max(rank, 0)


def _pairs(
    run: Callable[..., tuple[float, float]], budget: float, clock: Callable[[], float]
) -> list[tuple[float, float]]:
    start = clock()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MAX_PAIRS:
        pairs.append(run(mlx_first=len(pairs) % 2 == 1))
        logs = [math.log(theirs / ours) for ours, theirs in pairs]
        if len(pairs) < MIN_PAIRS:
            continue
        # A clock that jumps ends this too early or after MAX_PAIRS, never later.
        spent = clock() - start
        if min(logs) > CLEAR or max(logs) < -CLEAR or not 0 <= spent < PERSISTENCE * budget:
            break
        if spent >= budget and not _in_doubt(logs):
            break
    return pairs


def _runner(
    ways: tuple[Work, Work], clock: Callable[[], float]
) -> Callable[..., tuple[float, float]]:
    """Return a function that runs both ways once each and returns both times."""
    ours, theirs = ways

    def run(*, mlx_first: bool = False) -> tuple[float, float]:
        if mlx_first:
            second = _time(theirs, clock)
            return _time(ours, clock), second
        return _time(ours, clock), _time(theirs, clock)

    return run


def _time(work: Work, clock: Callable[[], float]) -> float:
    start = clock()
    mx.eval(work())
    return max(clock() - start, 1e-9)


def shrink(problem: Problem, flops: int) -> Problem:
    """Return ``problem``, or a smaller one of its kind with about ``flops`` operations.

    Batch and heads go first, down to what keeps all processors busy; lengths follow, in
    proportion.
    """
    if problem.flops <= flops:
        return problem
    smaller = resized(problem, batch=1)
    group = smaller.heads_q // smaller.heads_kv
    per_head = smaller.flops // smaller.heads_q
    least = min(smaller.heads_kv, max(1, -(-machine.available_cpus() // group)))
    heads = min(smaller.heads_kv, max(least, flops // max(1, per_head * group)))
    smaller = resized(smaller, heads_q=heads * group, heads_kv=heads)
    if smaller.flops <= flops:
        return smaller
    factor = math.sqrt(flops / smaller.flops)
    q, kv = (max(1, int(n * factor)) for n in (smaller.seq_q, smaller.seq_kv))
    if q == kv and problem.seq_q != problem.seq_kv:  # rounding must not change the kind
        q, kv = (q, kv + 1) if problem.seq_q < problem.seq_kv else (q + 1, kv)
    return resized(smaller, seq_q=q, seq_kv=kv)
