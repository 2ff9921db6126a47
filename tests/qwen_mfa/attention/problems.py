"""Draws attention problems, and compares results with bounds that are derived, not tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from qwen_mfa.validation.reference import attention_float64

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call

# Error allowed against float64, per row, as a multiple of the largest |v| of the problem: rounding
# the result to 16 bits costs half a unit in the last place (2^-9, 2^-12 of the value); FP32
# arithmetic over S keys about sqrt(S) * 2^-24 for weights and sums. Factor 2 and 16 to spare.
BOUNDS = {mx.bfloat16: 2**-8, mx.float16: 2**-11, mx.float32: 2**-19}


@dataclass(frozen=True, kw_only=True)
class Shape:
    b: int = 1
    hq: int = 2
    hkv: int = 2
    sq: int = 33
    skv: int = 47
    d: int = 64
    dv: int = 64


def draw(
    shape: Shape, dtype: mx.Dtype = mx.float32, *, seed: int = 0, interleaved: bool = False
) -> tuple[mx.array, mx.array, mx.array]:
    """Draw q, k, v; ``interleaved`` lays them out as BSHD memory seen as BHSD."""
    rng = np.random.default_rng(seed)

    def one(h: int, s: int, d: int) -> mx.array:
        if interleaved:
            x = rng.standard_normal((shape.b, s, h, d), dtype=np.float32)
            return mx.array(x).astype(dtype).transpose(0, 2, 1, 3)
        return mx.array(rng.standard_normal((shape.b, h, s, d), dtype=np.float32)).astype(dtype)

    return (
        one(shape.hq, shape.sq, shape.d),
        one(shape.hkv, shape.skv, shape.d),
        one(shape.hkv, shape.skv, shape.dv),
    )


def as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def assert_exact(out: mx.array, call: Call, *, factor: float = 1.0) -> None:
    """Hold every element of ``out`` to the bound against float64."""
    exact = np.array(attention_float64(call))
    got = as_numpy(out)
    assert got.shape == exact.shape
    assert np.isfinite(got).all()
    allowed = factor * BOUNDS[out.dtype] * max(1e-3, float(np.abs(as_numpy(call.v)).max()))
    worst = float(np.abs(got - exact).max(initial=0.0))
    assert worst <= allowed, f"error {worst:.2e}, allowed {allowed:.2e}"
