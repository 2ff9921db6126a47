"""Counts what attention did in this process, and compares the native kernels' time with MLX's."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks, telemetry
from qwen_mfa.kernels import mlx
from qwen_mfa.problem import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.problem import Problem

# Seconds that the comparison may take, at the end of a run.
BUDGET = 2.0
PART_FLOPS = 200_000_000  # a tenth of a second with the slowest MLX that was seen


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Native kernels against MLX.

    Attributes:
        native: Seconds that the native kernels took, as they ran.
        mlx: Seconds that MLX takes for the same calls: one call of each shape, timed afterwards on
            random inputs, times the number of calls.
        measured: False when some shape was too slow to time in full, and one head of it was timed
            (or a part of it) was timed instead and scaled up.

    """

    native: float
    mlx: float
    measured: bool

    @property
    def seconds(self) -> float:
        """Time saved; negative when MLX would have been faster."""
        return self.mlx - self.native


@dataclass(kw_only=True)
class Usage:
    """Counters; `start` makes them count. Safe to read while other threads attend."""

    kernels: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    native: Counter[Problem] = field(default_factory=Counter)
    padding_removed: int = 0
    _lock: Any = field(default_factory=forks.lock, repr=False)

    def start(self) -> Callable[[], None]:
        """Count from now on; return how to stop."""
        return telemetry.subscribe(self._on_event)

    def saving(self, budget: float = BUDGET) -> Saving | None:
        """Time MLX on what the native kernels computed; ``None`` when they computed nothing.

        Args:
            budget: Seconds to spend at most, roughly.

        """
        with self._lock:
            native = dict(self.native)
            spent = sum(self.seconds.values())
        if not native:
            return None
        total, all_measured = 0.0, True
        for problem, calls in sorted(native.items(), key=lambda item: -item[1] * item[0].flops):
            start = time.perf_counter()
            seconds, measured = _time_of_mlx(problem, budget)
            budget -= time.perf_counter() - start
            total += calls * seconds
            all_measured &= measured
        return Saving(native=spent, mlx=total, measured=all_measured)

    def _on_event(self, event: telemetry.Event) -> None:
        with self._lock:
            if event.kernel is None:
                self.padding_removed += 1
                return
            self.kernels[event.kernel] += 1
            if event.kernel == mlx.name:
                self.reasons[event.reason] += 1
            elif event.problem is not None and event.seconds is not None:
                self.native[event.problem] += 1
                before = self.seconds.get(event.kernel, 0.0)
                self.seconds[event.kernel] = before + event.seconds


def _time_of_mlx(problem: Problem, budget: float) -> tuple[float, bool]:
    """Return MLX's seconds for one call, and whether the whole problem was timed.

    Ever larger parts are timed while the next one is expected to fit the budget: some rows of one
    head, one head, all. On a GPU the small parts say little, but there the whole is soon timed.
    """
    head = replace(
        problem, batch=1, heads_q=problem.heads_q // problem.heads_kv, heads_kv=1, mask_shape=()
    )
    rows = max(1, min(head.seq_q, head.seq_q * PART_FLOPS // max(head.flops, 1)))
    sizes = [replace(head, seq_q=rows), head, replace(problem, mask_shape=())]
    part, measured = sizes[0], _timed(sizes[0])
    for larger in sizes[1:]:
        expected = measured * larger.flops / part.flops
        if expected > budget:
            return measured * problem.flops / part.flops, False
        part, measured = larger, _timed(larger)
        budget -= measured
    return measured, True


def _timed(problem: Problem) -> float:
    """Time the second of two calls on random inputs. The mask's values do not matter to MLX."""
    dtype = next(dtype for dtype, name in DTYPES.items() if name == problem.dtype)
    shapes = [
        (problem.batch, problem.heads_q, problem.seq_q, problem.head_dim),
        (problem.batch, problem.heads_kv, problem.seq_kv, problem.head_dim),
        (problem.batch, problem.heads_kv, problem.seq_kv, problem.value_dim),
    ]
    q, k, v = (mx.random.normal(shape).astype(dtype) for shape in shapes)
    mask = _mask_like(problem, dtype)
    mx.eval(q, k, v, mask)

    def once() -> float:
        start = time.perf_counter()
        scale = problem.head_dim**-0.5
        mx.eval(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask))
        return time.perf_counter() - start

    first = once()
    # A slow call has no warm-up worth a second one.
    return first if first > BUDGET / 4 else min(first, once())


def _mask_like(problem: Problem, dtype: mx.Dtype) -> mx.array | str | None:
    if problem.mask == "causal":
        return "causal"
    if problem.mask == "none":
        return None
    ones = mx.ones((1, 1, 1, problem.seq_kv), dtype=mx.bool_)
    return ones if problem.mask == "bool" else mx.zeros(ones.shape, dtype=dtype)
