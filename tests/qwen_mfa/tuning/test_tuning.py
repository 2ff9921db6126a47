"""Tuning on simulated kernels and clocks: what wins, what does not, and what it may cost."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_mfa import machine
from qwen_mfa.kernels import mlx
from qwen_mfa.problem import Problem
from qwen_mfa.transforms import autodiff
from qwen_mfa.tuning import measure
from qwen_mfa.validation.variants import class_of, half_octave, variant_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call


def problem(**changes: object) -> Problem:
    values = {
        "batch": 1,
        "heads_q": 24,
        "heads_kv": 24,
        "seq_q": 1124,
        "seq_kv": 1124,
        "head_dim": 128,
        "value_dim": 128,
        "dtype": "bfloat16",
    }
    return Problem(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class Simulation:
    """A kernel and MLX that take the time they are told to, on a clock of their own."""

    kernel_rate: float  # operations a second
    mlx_rate: float
    noise: float = 0.0
    latency: float = 0.0  # of every call, as on a GPU
    jumps: tuple[float, ...] = ()
    seed: int = 7
    now: float = 0.0
    mlx_work: list[float] = field(default_factory=list)
    name: str = "simulated"
    roundoff: float = 2**-24
    needs_child_validation: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - noise, not secrets
        self._jumps = iter(self.jumps)

    def refuses(self, problem: Problem) -> str | None:
        return None

    def run(self, call: Call) -> mx.array:
        self._pass(self.latency + call.problem.flops / self.kernel_rate)
        return mx.zeros((1,))

    def mlx(self, call: Call) -> mx.array:
        self.mlx_work.append(self.latency + call.problem.flops / self.mlx_rate)
        self._pass(self.mlx_work[-1])
        return mx.zeros((1,))

    def clock(self) -> float:
        return self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds * math.exp(self._random.gauss(0, self.noise))
        self.now += next(self._jumps, 0.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[measure.Sample]]:
    def run(simulation: Simulation, of: Problem) -> list[measure.Sample]:
        monkeypatch.setattr(mlx, "run", simulation.mlx)
        monkeypatch.setattr(autodiff, "differentiable", lambda call, run: run(call))
        # Inputs are not looked at: drawing them at full size would only take time.
        monkeypatch.setattr(measure, "draw", lambda problem: _Drawn(_Described(problem)))
        monkeypatch.setattr(autodiff, "evaluate", lambda *_: True)
        _, low, high = class_of(of)
        return measure.measure(simulation, (low, high), clock=simulation.clock)

    return run


@dataclass
class _Described:
    problem: Problem


@dataclass
class _Drawn:
    call: _Described


def test_a_faster_kernel_wins_at_both_ends(measured: Callable[..., list[measure.Sample]]) -> None:
    samples = measured(Simulation(kernel_rate=3e13, mlx_rate=1e13, noise=0.03), problem())
    assert [sample.wins for sample in samples] == [True, True]
    assert [sample.reduced for sample in samples] == [False, False]
    for sample in samples:
        assert math.exp(sample.gain) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("rate", [0.3, 0.9, 1.0, 1.01])
def test_what_is_not_faster_beyond_noise_does_not_win(
    rate: float, measured: Callable[..., list[measure.Sample]]
) -> None:
    samples = measured(Simulation(kernel_rate=rate * 1e13, mlx_rate=1e13, noise=0.05), problem())
    assert not all(sample.wins for sample in samples)


def test_equal_speed_hardly_ever_wins(measured: Callable[..., list[measure.Sample]]) -> None:
    """Of forty noisy comparisons of a kernel with its like, one may be believed, not two."""
    wins = 0
    for seed in range(40):
        like = Simulation(kernel_rate=1e13, mlx_rate=1e13, noise=0.2, seed=seed)
        wins += all(sample.wins for sample in measured(like, problem()))
    assert wins <= 1


def test_noise_decides(measured: Callable[..., list[measure.Sample]]) -> None:
    quiet = Simulation(kernel_rate=1.15e13, mlx_rate=1e13, noise=0.01)
    loud = Simulation(kernel_rate=1.15e13, mlx_rate=1e13, noise=0.8)
    assert all(sample.wins for sample in measured(quiet, problem()))
    assert not all(sample.wins for sample in measured(loud, problem()))


@pytest.mark.parametrize("rate", [1e9, 2.5e9, 1e11, 1e13])
@pytest.mark.parametrize("tokens", [64, 1124, 4196, 7000])
def test_the_cost_is_bounded(
    tokens: int, rate: float, measured: Callable[..., list[measure.Sample]]
) -> None:
    of = problem(seq_q=tokens, seq_kv=tokens)
    simulation = Simulation(kernel_rate=rate * 0.97, mlx_rate=rate, noise=0.02)
    samples = measured(simulation, of)
    first = measure._FIRST_LOOK / rate
    ends = len(samples)
    # Twice the budget: the pair that crosses the line, and the warm runs.
    assert simulation.now <= ends * (2 * measure.BUDGET + 2 * (measure.MIN_PAIRS + 3) * first)
    assert max(simulation.mlx_work) <= max(measure.BUDGET / 5, 2 * first)
    if any(sample.reduced for sample in samples):
        assert ends == 1, "the other end would have been reduced to the same"


@pytest.mark.parametrize("tokens", [1124, 1536, 4196, 4608, 6989, 7401, 9000])
def test_where_launches_take_the_time_problems_are_measured_at_full_size(
    tokens: int, measured: Callable[..., list[measure.Sample]]
) -> None:
    """An H100's rates: a small problem takes as long as one of hundreds of times its size."""
    gpu = Simulation(kernel_rate=5e14, mlx_rate=4e14, latency=1.5e-4, noise=0.01)
    samples = measured(gpu, problem(seq_q=tokens, seq_kv=tokens))
    assert not any(sample.reduced for sample in samples)


def test_extrapolation_needs_more(measured: Callable[..., list[measure.Sample]]) -> None:
    slow = Simulation(kernel_rate=1.15e9, mlx_rate=1e9, noise=0.001)
    (sample,) = measured(slow, problem(seq_q=4196, seq_kv=4196))
    assert sample.reduced
    assert sample.gain > sample.noise
    assert not sample.wins


@pytest.mark.parametrize("jump", [-1e6, 1e6, 3600.0, -3600.0])
@pytest.mark.parametrize("faster", [2.0, 0.5])
def test_a_clock_that_jumps(
    jump: float, faster: float, measured: Callable[..., list[measure.Sample]]
) -> None:
    """One jump, at any run: the result is that of the other pairs, and tuning ends."""
    for at in range(2, 16):
        jumps = (*itertools.repeat(0.0, at), jump)
        rates = {"kernel_rate": faster * 1e13, "mlx_rate": 1e13}
        samples = measured(Simulation(**rates, noise=0.01, jumps=jumps), problem())
        assert all(sample.pairs <= measure.MAX_PAIRS for sample in samples)
        if faster < 1:
            assert not all(sample.wins for sample in samples)


def test_a_real_kernel_against_itself_does_not_win() -> None:
    """MLX, evaluated eagerly, against MLX: no simulation, and no gain that could be believed."""

    class Same:
        name, roundoff, needs_child_validation = "same", 2**-24, False

        def refuses(self, problem: Problem) -> str | None:
            return None

        def run(self, call: Call) -> mx.array:
            out = mlx.run(call)
            mx.eval(out)
            mx.eval(mlx.run(call))  # and once more: it is slower for certain
            return out

    small = problem(heads_q=2, heads_kv=2, seq_q=60, seq_kv=60)
    samples = measure.measure(Same(), class_of(small)[1:], budget=0.05)
    assert not all(sample.wins for sample in samples)


sizes = st.integers(min_value=1, max_value=9000)


@given(
    q=sizes, kv=sizes, heads=st.integers(1, 40), group=st.integers(1, 8), batch=st.integers(1, 4)
)
def test_smaller_problems_are_of_the_same_kind(
    q: int, kv: int, heads: int, group: int, batch: int
) -> None:
    of = problem(batch=batch, heads_q=heads * group, heads_kv=heads, seq_q=q, seq_kv=kv)
    smaller = measure.shrink(of, measure._FIRST_LOOK)
    a, b = variant_of(of), variant_of(smaller)
    assert (a.relation, a.group, a.dtype) == (b.relation, b.group, b.dtype)
    if of.flops <= measure._FIRST_LOOK:
        assert smaller == of
    else:
        rounding = (1 + 1 / smaller.seq_q) * (1 + 1 / smaller.seq_kv)
        assert smaller.flops <= measure._FIRST_LOOK * rounding * group
        assert smaller.heads_kv >= min(heads, machine.available_cpus() // group)


@given(q=sizes, kv=sizes, heads=st.integers(1, 40))
def test_classes_hold_their_members(q: int, kv: int, heads: int) -> None:
    of = problem(heads_q=heads, heads_kv=heads, seq_q=q, seq_kv=kv)
    key, low, high = class_of(of)
    assert low.seq_q <= q <= high.seq_q or variant_of(of).relation != "="
    for end in (low, high):
        assert (
            class_of(end)[0].split(" BH ")[0].split(" Sq ")[1:]
            == (key.split(" BH ")[0].split(" Sq ")[1:])
        )
        assert variant_of(end).relation == variant_of(of).relation
    assert high.seq_kv <= 1.5 * low.seq_kv + 2


@given(length=st.integers(1, 1 << 20))
def test_half_octaves_cover_every_length_once(length: int) -> None:
    low, high = half_octave(length)
    assert low <= length <= high
    assert half_octave(low) == half_octave(high) == (low, high)
    assert half_octave(high + 1)[0] == high + 1


def test_prompts_of_an_image_share_classes() -> None:
    """Text of 1 to 400 tokens beside 1024 image tokens: one class."""
    keys = {class_of(problem(seq_q=1024 + t, seq_kv=1024 + t))[0] for t in range(1, 401)}
    assert len(keys) == 1


def test_a_mask_follows_its_problem() -> None:
    of = problem(mask="bool", mask_shape=(1, 1, 1124), seq_kv=1124)
    assert measure.shrink(of, 1 << 20).mask_shape[:2] == (1, 1)
    assert measure.shrink(of, 1 << 20).mask_shape[2] == measure.shrink(of, 1 << 20).seq_kv
