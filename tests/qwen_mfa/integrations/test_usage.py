"""Counters and the comparison with MLX, in the main environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.cli import run
from qwen_mfa.errors import NativeError
from qwen_mfa.integrations import usage
from qwen_mfa.integrations.usage import Usage
from qwen_mfa.kernels import cpu
from qwen_mfa.selection import session
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_mfa.problem import Problem

pytestmark = pytest.mark.cpu

SHAPE = (2, 4, 96, 32)


@pytest.fixture(autouse=True)
def small_problems_too(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> None:
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", "0")
    session.start()


@pytest.fixture(autouse=True)
def native_kernel() -> Iterator[None]:
    """Run the native kernel even where a busy machine cannot measure that it is faster."""
    with qwen_mfa.use("cpu"):
        yield


@pytest.fixture
def counted() -> Iterator[Usage]:
    counters = Usage()
    stop = counters.start()
    yield counters
    stop()


def attend(mask: mx.array | str | None = None, dtype: mx.Dtype = mx.float32) -> mx.array:
    x = mx.random.normal(SHAPE).astype(dtype)
    out = qwen_mfa.scaled_dot_product_attention(x, x, x, scale=0.2, mask=mask)
    mx.eval(out)
    return out


@pytest.mark.parametrize(
    "mask",
    [None, "causal", mx.tril(mx.ones((96, 96))) == 1, -mx.tri(96), mx.arange(96) < 50],
    ids=["none", "causal", "bool", "additive", "padding"],
)
def test_saving_is_measured(counted: Usage, mask: mx.array | str | None) -> None:
    for dtype in (mx.float32, mx.bfloat16):
        attend(
            mask
            if not isinstance(mask, mx.array) or mask.dtype == mx.bool_
            else mask.astype(dtype),
            dtype,
        )
    saving = counted.saving()
    assert counted.kernels == {"cpu": 2}
    assert counted.padding_removed == (2 if isinstance(mask, mx.array) and mask.ndim == 1 else 0)
    assert saving is not None
    assert saving.measured
    assert saving.native == sum(counted.seconds.values()) > 0
    assert saving.mlx > 0
    assert saving.seconds == saving.mlx - saving.native


def test_saving_is_estimated_when_it_would_take_long(counted: Usage) -> None:
    attend()
    saving = counted.saving(budget=0)
    assert saving is not None
    assert not saving.measured
    assert saving.mlx > 0


def test_estimate_counts_every_head_and_call(
    counted: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend()
    attend()
    shapes: list[Problem] = []

    def timed(problem: Problem) -> float:
        shapes.append(problem)
        return 3.0

    monkeypatch.setattr(usage, "_timed", timed)
    monkeypatch.setattr(usage, "PART_FLOPS", 4 * 24 * 96 * 32)  # 24 of 96 rows
    saving = counted.saving(budget=1)
    assert saving is not None
    assert saving.mlx == 2 * 3.0 * SHAPE[0] * SHAPE[1] * 4  # calls, seconds, batch, heads, rows
    (one,) = shapes
    assert (one.batch, one.heads_q, one.heads_kv, one.seq_q, one.seq_kv) == (1, 1, 1, 24, 96)


def test_nothing_native_nothing_compared(counted: Usage) -> None:
    with qwen_mfa.use("mlx"):
        attend()
    assert counted.kernels == {"mlx": 1}
    assert counted.saving() is None
    assert run.describe(counted, ["x"], 0, compare=True)["summary"].startswith(
        "attention ran 1 times (mlx 1); nothing gained"
    )


def test_a_failing_kernel_counts_as_mlx(counted: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: object) -> mx.array:
        raise NativeError("mfa_portable_attention", 5, "injected")

    attend()  # validates the kernel, before it begins to fail
    monkeypatch.setattr(cpu, "run", fail)
    attend()
    assert counted.kernels == {"cpu": 1, "mlx": 1}
    assert sum(counted.native.values()) == 1
    assert all("injected" in reason for reason in counted.reasons)
    text = run.describe(counted, ["x"], 0, compare=True)["summary"]
    assert "MLX for the rest: cpu: failed in this process" in text


def test_summary_without_any_call() -> None:
    summary = run.describe(Usage(), ["x"], 0, compare=True)["summary"]
    assert summary == (
        "attention never ran through qwen-mfa (no module of the models asked for was imported)"
    )


def test_interrupted_runs_are_not_compared(counted: Usage) -> None:
    attend()
    report = run.describe(counted, ["x"], 130, compare=False)
    assert report["saving"] is None
    assert report["summary"] == "attention ran 1 times (cpu 1)"
