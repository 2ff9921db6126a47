"""Attention in float64, in plain MLX operations on the CPU: the measure of every kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwen_mfa.kernels.base import Call


def attention_float64(call: Call) -> mx.array:
    """Compute ``call`` in float64, one head at a time so that memory stays at ``Sq · Skv``.

    A row whose keys are all hidden gives the mean of the values for a bool or causal mask (as MLX
    on the CPU), zeros for an additive one or with sinks.

    Returns:
        ``[B, Hq, Sq, Dv]``, float64, evaluated, on the CPU.

    """
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        batch, heads, rows, _ = call.q.shape
        repeat = heads // call.k.shape[1]
        mask = None if call.mask is None else _mask(call, call.mask)
        outputs = []
        for b in range(batch):
            for h in range(heads):
                hidden = None if mask is None else mask[b, h]
                sink = None if call.sinks is None else call.sinks[h]
                outputs.append(_head(call, b, h, h // repeat, hidden, sink))
                mx.eval(outputs[-1])
        out = mx.stack(outputs).reshape(batch, heads, rows, call.v.shape[-1])
        mx.eval(out)
        return out


def _head(
    call: Call, b: int, h: int, kv: int, mask: mx.array | None, sink: mx.array | None
) -> mx.array:
    weights = _weights(call.q[b, h], call.k[b, kv], call.scale, mask, sink)
    return weights @ call.v[b, kv].astype(mx.float64)


def _weights(
    q: mx.array, k: mx.array, scale: float, mask: mx.array | None, sink: mx.array | None
) -> mx.array:
    """Return the softmax weights ``[…, rows, keys]``, what a sink takes left out."""
    scores = (q.astype(mx.float64) * scale) @ k.astype(mx.float64).swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
    empty = mx.isneginf(scores).all(axis=-1, keepdims=True)
    even = mask is not None and mask.dtype == mx.bool_ and sink is None
    scores = mx.where(empty, 0.0, scores) if even else scores
    top = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        top = mx.maximum(top, sink.astype(mx.float64))
    top = mx.where(mx.isneginf(top), 0.0, top)
    weights = exp_float64(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + exp_float64(sink.astype(mx.float64) - top)
    return weights / mx.where(total == 0, 1.0, total)


def exp_float64(array: mx.array) -> mx.array:
    """Return ``e`` to the power of a float64 array, on the CPU.

    MLX's own ``exp`` of float64 is off by up to 2.7e-6 of the value (0.32.4), its power by 2e-15.
    """
    return mx.power(mx.array(math.e, dtype=mx.float64), array)


def largest(array: mx.array) -> float:
    """Return the largest absolute value, of any dtype, on the CPU: no GPU has float64."""
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        return float(mx.abs(array.astype(mx.float64)).max().item())  # type: ignore[arg-type]


def distance(a: mx.array, b: mx.array) -> float:
    """Return the largest absolute difference, in float64 on the CPU; NaN counts as infinity."""
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        difference = a.astype(mx.float64) - b.astype(mx.float64)
        return largest(mx.where(mx.isnan(difference), mx.inf, difference))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exact:
    """Some query rows of the result, with what an error bound is made of. All float64, evaluated.

    Attributes:
        value: ``[B, Hq, R, Dv]``, the result.
        spread: ``[B, Hq, R, Dv]``, the same with absolute values: ``weights @ |v|``.
        size: ``[B, Hq, R, 1]``, the largest ``scale · |q| |k|ᵀ + |bias|`` of a key that counts.

    """

    value: mx.array
    spread: mx.array
    size: mx.array


def attention_rows(call: Call, rows: Sequence[int]) -> Exact:
    """Compute the query rows ``rows`` of ``call`` in float64, all heads at once."""
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        repeat = call.q.shape[1] // call.k.shape[1]
        q = call.q[:, :, mx.array(list(rows))]
        k, v = (mx.repeat(x, repeat, axis=1).astype(mx.float64) for x in (call.k, call.v))
        mask = None if call.mask is None else _mask(call, call.mask)[:, :, mx.array(list(rows))]
        sink = None if call.sinks is None else call.sinks[None, :, None, None]
        weights = _weights(q, k, call.scale, mask, sink)
        size = mx.abs(q.astype(mx.float64) * call.scale) @ mx.abs(k).swapaxes(-1, -2)
        if mask is not None and mask.dtype != mx.bool_:
            size = size + mx.abs(mask)
        exact = Exact(
            value=weights @ v,
            spread=weights @ mx.abs(v),
            size=mx.where(weights > 0, size, 0.0).max(axis=-1, keepdims=True),
        )
        mx.eval(exact.value, exact.spread, exact.size)
        return exact


def _mask(call: Call, mask: mx.array | str) -> mx.array:
    batch, heads, rows, _ = call.q.shape
    keys = call.k.shape[2]
    if isinstance(mask, str):
        mask = mx.arange(keys)[None, :] <= mx.arange(rows)[:, None] + (keys - rows)
    elif mask.dtype != mx.bool_:
        mask = mask.astype(mx.float64)
    return mx.broadcast_to(mask, (batch, heads, rows, keys))
