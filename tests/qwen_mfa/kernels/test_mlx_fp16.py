"""bfloat16 in float16: never where anything could overflow, and then no worse than MLX's own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qwen_mfa
from qwen_mfa.kernels import mlx, mlx_fp16
from qwen_mfa.problem import Problem
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.reference import attention_float64
from qwen_mfa.validation.validate import validate
from qwen_mfa.validation.variants import variant_of

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call

pytestmark = pytest.mark.usefixtures("cold")


def problem(**changes: object) -> Problem:
    values = {
        "batch": 1,
        "heads_q": 2,
        "heads_kv": 2,
        "seq_q": 12,
        "seq_kv": 17,
        "head_dim": 32,
        "value_dim": 32,
        "dtype": "bfloat16",
    }
    return Problem(**{**values, **changes})  # type: ignore[arg-type]


def scaled(call: Call, q: float, k: float, v: float, scale: float) -> Call:
    factors = zip((call.q, call.k, call.v), (q, k, v), strict=True)
    arrays = [(x.astype(mx.float32) * f).astype(mx.bfloat16) for x, f in factors]
    mx.eval(arrays)
    return replace(call, q=arrays[0], k=arrays[1], v=arrays[2], scale=scale)


def bits(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16))


def errors(call: Call) -> tuple[float, float, float]:
    """Return our error, MLX's, and half a unit in the last place of the largest value."""
    exact = np.array(attention_float64(call))
    ours, theirs = (
        float(np.abs(np.array(run(call).astype(mx.float32)) - exact).max())
        for run in (mlx_fp16.run, mlx.run)
    )
    return ours, theirs, 2**-8 * float(np.abs(exact).max())


powers = st.floats(min_value=-40, max_value=60).map(lambda x: 2.0**x)


@settings(max_examples=600, deadline=None)
@given(q=powers, k=powers, v=powers, scale=powers, seed=st.integers(0, 3))
@example(q=2.0124443055853525, k=1.0, v=1.0, scale=2.0**3.25, seed=0)
def test_any_magnitude(q: float, k: float, v: float, scale: float, seed: int) -> None:
    """Either MLX's result to the last bit, or one as near to float64 as float16's scores allow.

    bfloat16's are eight times as far off, but for one input or another their errors cancel.
    """
    call = scaled(draw(problem(), seed=seed).call, q, k, v, scale)
    out = mlx_fp16.run(call)
    if not mlx_fp16.fits(call, 32):
        np.testing.assert_array_equal(bits(out), bits(mlx.run(call)))
        return
    assert np.isfinite(np.array(out.astype(mx.float32))).all()
    ours, theirs, rounding = errors(call)
    q64, k64, v64 = (np.array(x.astype(mx.float32), np.float64) for x in (call.q, call.k, call.v))
    scores = np.abs(q64 @ k64.swapaxes(2, 3) * call.scale).max()
    # A weight is off by a score's absolute error, relatively, and so is the sum that it is held to.
    lost = 2 * float(scores) * mlx_fp16.roundoff * float(np.abs(v64).max())
    assert ours <= max(theirs, 2 * rounding, lost)


def test_a_scale_beyond_float16() -> None:
    """MLX's fallback casts the scale to the inputs' dtype: an infinity, though q is tiny."""
    call = scaled(draw(problem()).call, 2.0**-14, 2.0**-14, 1.0, 65536.0)
    assert not mlx_fp16.fits(call, 32)


@pytest.mark.parametrize("edge", ["q", "k", "v", "score", "scaled q"])
def test_at_the_guard_s_edges(edge: str) -> None:
    """All that the guard lets through is finite in float16, on MLX's own path too."""
    ones = draw(problem()).call
    ones = replace(ones, q=mx.ones_like(ones.q), k=mx.ones_like(ones.k), v=mx.ones_like(ones.v))
    top = mlx_fp16.LARGEST
    factors = {
        "q": (top, 2.0**-20, 1.0, 1.0),
        "k": (2.0**-20, top, 1.0, 1.0),
        "v": (1.0, 1.0, top, 1.0),
        "score": (32.0, 32.0, 1.0, 1.0),
        "scaled q": (2.0**5, 2.0**-20, 1.0, 2.0**10),
    }[edge]
    inside = scaled(ones, *factors)
    q, k, v = (x.astype(mx.float16) for x in (inside.q, inside.k, inside.v))
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=inside.scale)
    in_float16 = np.array(out.astype(mx.float32))
    assert np.isfinite(in_float16).all()
    if edge in {"v", "score"}:  # the others are refused for what they lose, not for overflow
        assert mlx_fp16.fits(inside, 32)
    beyond = [2 * f if f == max(factors) else f for f in factors[:3]]
    assert not mlx_fp16.fits(scaled(ones, *beyond, factors[3]), 32)


def test_overflow_would_have_happened() -> None:
    """What the guard is for: float16 alone gives infinities or NaN here, and we do not."""
    call = scaled(draw(problem()).call, 1.0, 1.0, 1e6, 0.2)
    bare = mx.fast.scaled_dot_product_attention(
        call.q.astype(mx.float16), call.k.astype(mx.float16), call.v.astype(mx.float16), scale=0.2
    )
    assert not np.isfinite(np.array(bare.astype(mx.float32))).all()
    out = mlx_fp16.run(call)
    np.testing.assert_array_equal(bits(out), bits(mlx.run(call)))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_infinities_and_nan_are_mlx_s(value: float, which: str) -> None:
    call = draw(problem()).call
    x = np.array(getattr(call, which).astype(mx.float32))
    x[0, 1, 3, 5] = value
    call = replace(call, **{which: mx.array(x).astype(mx.bfloat16)})
    out = mlx_fp16.run(call)
    np.testing.assert_array_equal(bits(out), bits(mlx.run(call)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "float32"}, "this is float32"),
        ({"mask": "additive", "mask_shape": (12, 17)}, "additive mask"),
        ({"sinks": True}, "sinks"),
        ({"seq_kv": 70000}, "weights underflow"),
        ({"seq_q": 0}, "nothing to compute"),
    ],
)
def test_refuses(changes: dict[str, object], says: str) -> None:
    assert says in (mlx_fp16.refuses(problem(**changes)) or "")


@pytest.mark.parametrize("mask", ["none", "causal", "bool"])
def test_it_is_proved(mask: str) -> None:
    of = problem(mask=mask, mask_shape=(12, 17) if mask == "bool" else ())
    result = validate(mlx_fp16, variant_of(of))
    assert result.ok, result.reason
    call = draw(of).call
    with qwen_mfa.use("mlx-fp16"):
        out = qwen_mfa.scaled_dot_product_attention(
            call.q, call.k, call.v, scale=call.scale, mask=call.mask
        )
    assert out.dtype == mx.bfloat16
    assert qwen_mfa.stats().calls == {"mlx-fp16": 1}
