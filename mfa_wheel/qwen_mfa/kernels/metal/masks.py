"""Masks in the form in which the Metal library gives the right result.

It adds a mask to the scores *before* the softmax scale, so biases are divided by the scale here. It
computes with fast math, where infinities are unsafe: hidden keys get a large finite bias instead.
The softmax does not change when a row's biases all move by the same amount: the largest is moved
to zero, so that FP32 keeps the scores beside it, and a fused multiply-add cannot turn rounding of a
large common bias into a large weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call

# In units of the scaled score: a hidden key would have to score 60000 above the best visible one
# to matter, and half a unit in its last place (2^-9) is far below one.
HIDDEN = -60000.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A mask as the library takes it.

    Attributes:
        bias: FP32, evaluated, of 4 dimensions that are 1 or those of (B, H, Sq, Skv).
        empty: ``[…, Sq or 1, 1]``, true where a row has no key left; ``None`` if all have some.
        mean: What an empty row gives: the mean of the values (bool masks) or zeros.

    """

    bias: mx.array
    empty: mx.array | None
    mean: bool

    def finish(self, out: mx.array, v: mx.array) -> mx.array:
        """Put what MLX's semantics say into the rows without keys; lazily."""
        if self.empty is None:
            return out
        value = v.astype(mx.float32).mean(axis=2, keepdims=True) if self.mean else mx.array(0.0)
        return mx.where(self.empty, value, out)


def prepare(call: Call) -> Prepared | None:
    """Turn the call's array mask, if there is one, into what the library takes."""
    mask = call.mask
    if not isinstance(mask, mx.array):
        return None
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)  # its sizes are right-aligned
    if mask.dtype == mx.bool_:
        logits = mx.where(mask, mx.array(0.0), mx.array(HIDDEN))
        empty = mx.logical_not(mask.any(axis=-1, keepdims=True))
    else:
        biases = mask.astype(mx.float32)
        best = biases.max(axis=-1, keepdims=True)
        empty = mx.isneginf(best)
        logits = mx.maximum(biases - mx.where(empty, mx.array(0.0), best), HIDDEN)
    bias = mx.contiguous(logits / call.scale)
    some_empty = empty.any()
    mx.eval(bias, empty, some_empty)
    return Prepared(
        bias=bias,
        empty=empty if some_empty.item() else None,
        mean=mask.dtype == mx.bool_,
    )
