"""Thousands of random problems against float64, through whichever kernel dispatch picks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qwen_mfa
from qwen_mfa.problem import Problem
from qwen_mfa.selection import choose, session
from qwen_mfa.tuning import measure
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.reference import attention_rows

if TYPE_CHECKING:
    from pathlib import Path

    from qwen_mfa.validation.inputs import Drawn

pytestmark = pytest.mark.cpu

# Half a unit in the last place of the result's dtype, relative to the weighted values. MLX's CPU
# kernel keeps scores and weights of 16-bit inputs in 16 bits: its error grows with the scores.
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SLACK = {"float32": 64.0, "float16": 2.0, "bfloat16": 2.0}
MLX_SLACK = {"float32": 64.0, "float16": 48.0, "bfloat16": 48.0}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Variants are few, so that not every example has to be validated and measured first."""
    heads_kv, group = draw(st.sampled_from([(1, 1), (3, 1), (2, 2)]))
    batch, heads = draw(st.integers(1, 2)), heads_kv * group
    sq, skv = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    if draw(st.booleans()):
        skv = sq
    mask = draw(st.sampled_from(["none", "none", "causal", "bool", "additive"]))
    shapes = [(1, 1, 1, skv), (sq, skv), (batch, heads, sq, skv)]
    shape = draw(st.sampled_from(shapes)) if mask in {"bool", "additive"} else ()
    return Problem(
        batch=batch,
        heads_q=heads,
        heads_kv=heads_kv,
        seq_q=sq,
        seq_kv=skv,
        head_dim=64,
        value_dim=64,
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        mask=mask,
        mask_shape=shape,
    )


def check(of: Problem, drawn: Drawn) -> str:
    call = drawn.call
    out = qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask
    )
    kernel = choose.choose(of).kernel.name
    rows = list(range(of.seq_q))
    exact = attention_rows(call, rows)
    got = np.array(out.astype(mx.float32), dtype=np.float64)
    spread, size = np.array(exact.spread), np.array(exact.size)
    slack = (MLX_SLACK if kernel == "mlx" else SLACK)[of.dtype]
    allowed = slack * ROUNDOFF[of.dtype] * spread * np.maximum(1.0, size / 8) + 1e-7
    error = np.abs(got - np.array(exact.value))
    assert np.isfinite(got).all()
    assert (error <= allowed).all(), f"{kernel}, {of}: {(error / allowed).max():.1f} of the bound"
    return kernel


LAYOUTS = st.sampled_from(["dense", "interleaved", "sliced", "odd starts", "odd rows"])
SETTINGS = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def no_file(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of classes: writing them all down again for each would take most of the time."""
    cold.write_text("no folder", encoding="utf-8")
    session.start()


@pytest.fixture(scope="module")
def picked() -> set[str]:
    return set()


@settings(SETTINGS, max_examples=1200)
@given(of=problems(), layout=LAYOUTS, seed=st.integers(0, 1 << 20))
def test_whatever_dispatch_picks(
    of: Problem, layout: str, seed: int, monkeypatch: pytest.MonkeyPatch, picked: set[str]
) -> None:
    monkeypatch.setattr(choose, "TINY", 1 << 14)
    monkeypatch.setattr(measure, "BUDGET", 0.0)  # the least number of pairs
    picked.add(check(of, draw(of, layout=layout, seed=seed)))  # type: ignore[arg-type]


def test_kernels_of_more_than_one_kind_were_picked(picked: set[str]) -> None:
    """Or the test above would have tested MLX alone."""
    assert {"mlx", "cpu"} <= picked


@settings(SETTINGS, max_examples=1500)
@given(of=problems(), layout=LAYOUTS, seed=st.integers(0, 1 << 20))
def test_the_native_kernel(of: Problem, layout: str, seed: int) -> None:
    with qwen_mfa.use("cpu"):
        assert check(of, draw(of, layout=layout, seed=seed)) == "cpu"  # type: ignore[arg-type]
