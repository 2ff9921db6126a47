"""bfloat16 inputs computed in float16 by MLX itself: faster where bfloat16 is emulated (M1, M2).

float16 has three bits more of precision, and far less range. So the inputs' largest magnitudes are
looked at first (three small reductions), and only if nothing can overflow, and nothing that matters
can underflow, does float16 compute:

- Every element fits, q's also after scaling, and the scale itself, which MLX may cast too:
  ``|scale|, max |q|, |q scale|, |k|, |v| <= 2^15``.
- Every score fits, whatever the inputs' directions, and before the scale is applied too:
  ``D max|q| max|k| max(1, |scale|) <= 2^15``.
- What becomes subnormal is lost in the result's rounding: an element is off by ``2^-25`` at most, a
  score by ``D |scale| 2^-25 (max|q| + max|k|)``, plus ``D max|k| 2^-25`` where the scale is applied
  to q first; both are bounded by ``2^-9``. Values are off by ``2^-25`` where the largest is at
  least ``2^-10``.

Otherwise, and for infinities and NaN, MLX's own bfloat16 operation answers: the result is then
MLX's to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa.kernels import mlx

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem

name = "mlx-fp16"
roundoff = 2**-11
needs_child_validation = False  # nothing native but MLX

LARGEST = 2.0**15
MIN_VALUE = 2.0**-10
MAX_KEYS = 1 << 16
_SUBNORMAL = 2.0**-25
_LOSS = 2.0**-9


def refuses(problem: Problem) -> str | None:
    """Return why float16 cannot stand in for ``problem``, or ``None``."""
    if problem.is_empty or problem.head_dim == 0:
        return "there is nothing to compute"
    if problem.dtype != "bfloat16":
        return f"it is for bfloat16, and this is {problem.dtype}"
    if problem.mask == "additive":
        return "an additive mask may exceed float16's range"
    if problem.seq_kv > MAX_KEYS:
        return f"with more than {MAX_KEYS} keys, weights underflow in float16"
    if problem.sinks:
        return "sinks may exceed float16's range"
    return None


def run(call: Call) -> mx.array:
    """Return the result ``[B, Hq, Sq, Dv]`` in bfloat16, lazily, having waited for magnitudes."""
    inputs = (call.q, call.k, call.v)
    if any(x.dtype != mx.bfloat16 for x in inputs) or not fits(call, call.problem.head_dim):
        return mlx.run(call)
    q, k, v = (x.astype(mx.float16) for x in inputs)
    return mlx.run(replace(call, q=q, k=k, v=v)).astype(mx.bfloat16)


def fits(call: Call, head_dim: int) -> bool:
    """Whether float16 can hold everything that attention computes of these inputs."""
    tops = [mx.maximum(x.max(), -x.min()) for x in (call.q, call.k, call.v)]
    mx.eval(tops)
    q, k, v = (float(top.item().real) for top in tops)
    scale = abs(call.scale)
    # NaN compares as false: what is not a number does not fit.
    most = max(1.0, scale)
    in_range = max(scale, q * most, k, v, head_dim * q * k * most) <= LARGEST
    lost = head_dim * _SUBNORMAL * (scale * (q + k) + k)
    return (
        all(map(math.isfinite, (q, k, v, scale))) and in_range and lost <= _LOSS and v >= MIN_VALUE
    )
