"""The public operation: `scaled_dot_product_attention`, safe inside MLX's transformations."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import counters, telemetry
from qwen_mfa.kernels import mlx as reference
from qwen_mfa.kernels.base import Call
from qwen_mfa.native import buffers
from qwen_mfa.problem import describe
from qwen_mfa.selection import choose, override
from qwen_mfa.transforms import padding
from qwen_mfa.transforms.autodiff import differentiable, evaluate

if TYPE_CHECKING:
    from qwen_mfa.problem import Problem


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    force_fused: bool = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """Compute ``softmax(scale · q kᵀ + mask) v``: stands in for MLX's function of the same name.

    Args:
        q: Queries ``[B, Hq, Sq, D]`` (BHSD), float32, float16 or bfloat16; any strides.
        k: Keys ``[B, Hkv, Skv, D]``; ``Hkv`` divides ``Hq`` (grouped-query attention).
        v: Values ``[B, Hkv, Skv, Dv]``.
        scale: Factor on the scores, usually ``D ** -0.5``.
        mask: ``None``; ``"causal"`` (bottom-right aligned: the last query sees the last key); a
            bool array (true attends) or an additive one, of at most 4 dimensions, that broadcasts
            to ``[B, Hq, Sq, Skv]``. An additive mask's dtype must promote to the inputs'.
        sinks: ``None`` or attention sinks ``[Hq]``: one more logit per head in the denominator.
        force_fused: As in MLX.
        stream: As in MLX; it applies when MLX computes.

    Returns:
        ``[B, Hq, Sq, Dv]`` of the inputs' promoted dtype.

    Raises:
        ValueError: Shapes or dtypes that do not fit, as MLX raises it.
        TypeError: Arguments of a wrong type, as MLX raises it.

    The native kernels compute eagerly: the inputs are evaluated first. Where that is not possible
    (while ``mx.compile`` or ``mx.vmap`` traces, or for lazy inputs of another thread's stream) the
    result is MLX's own operation in the caller's graph. Masks that only hide padded keys are
    replaced by shorter K and V (see `qwen_mfa.transforms.padding`). Under ``mx.grad``, ``mx.vjp``
    and ``mx.jvp`` the derivatives are MLX's. One difference: a row whose keys are all hidden by
    ``-inf`` in an additive mask is zeros here where MLX gives NaN.

    Source of the semantics: ``mlx/fast.cpp`` of MLX 0.32.

    """
    key: object
    try:
        key = (
            *(q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype),
            mask if mask is None or isinstance(mask, str) else (mask.shape, mask.dtype),
            None if sinks is None else (sinks.shape, sinks.dtype),
            stream,
            mx.default_device().type,
            override.current(),
        )
        reason = _mlx_because.get(key)
    except (AttributeError, TypeError):  # arguments that MLX rejects
        key = reason = None
    if reason is not None:
        # The steady state where MLX's kernel is chosen: nothing but this look-up is added to it.
        if telemetry.wanted():
            problem = describe(q, k, v, mask, sinks)
            telemetry.emit(telemetry.Event(problem=problem, kernel=reference.name, reason=reason))
        counters.count(reference.name, reason)
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
        )
    call = Call(
        q=q, k=k, v=v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
    )
    return _attend(call, key)


# Why MLX computes calls of these shapes, dtypes and so on, whatever the arrays hold.
_mlx_because: dict[object, str] = {}
_MOST_KEYS = 4096  # a bound on memory
choose.when_forgotten(_mlx_because.clear)
# A forked child takes no short cut: see below.
os.register_at_fork(after_in_child=_mlx_because.clear)


def _attend(call: Call, key: object = None) -> mx.array:
    stream = buffers.working_stream()
    if stream is None:
        return _dispatch(call, key)
    # In a forked child MLX's default streams are dead, also for what MLX's own kernel computes.
    if isinstance(call.stream, mx.Stream):
        return _dispatch(call)
    with mx.stream(stream):
        return _dispatch(replace(call, stream=None))


def _dispatch(call: Call, key: object = None) -> mx.array:
    problem = describe(call.q, call.k, call.v, call.mask, call.sinks)
    if problem is None or not isinstance(call.scale, (int, float)) or call.force_fused:
        return _by_mlx(problem, call, "MLX judges this call")
    parts = padding.visible_parts(problem, call.mask)
    if parts is not None:
        return _without_padding(parts, problem, call)
    choice = choose.choose(problem, may_measure=lambda: evaluate(call))
    if choice.kernel is reference:
        if choice.final and key is not None and not isinstance(call.mask, mx.array):
            _remember(key, choice.reason)
        return _by_mlx(problem, call, choice.reason)
    if _is_elsewhere(call.stream):
        return _by_mlx(problem, call, "the caller's stream is of another device than MLX's default")
    if not evaluate(call):
        return _by_mlx(problem, call, "inside mx.compile or mx.vmap, or a lazy foreign input")
    return differentiable(problem, call, partial(_run, choice, problem))


def _remember(key: object, reason: str) -> None:
    if len(_mlx_because) >= _MOST_KEYS:
        _mlx_because.clear()
    _mlx_because[key] = reason


def _by_mlx(problem: Problem | None, call: Call, reason: str) -> mx.array:
    telemetry.record(problem, reference.name, reason)
    return reference.run(problem, call)


def _run(choice: choose.Choice, problem: Problem, call: Call) -> mx.array:
    start = time.perf_counter()
    result = choose.run(choice.kernel, problem, call)
    seconds = time.perf_counter() - start
    failure = choose.quarantined().get(choice.kernel.name)
    if failure is None:
        telemetry.record(problem, choice.kernel.name, choice.reason, seconds)
    else:
        telemetry.record(problem, reference.name, f"{choice.kernel.name}: {failure}")
    return result


def _without_padding(parts: tuple[padding.Part, ...], problem: Problem, call: Call) -> mx.array:
    telemetry.record(problem, None, "the mask only hides padded keys")
    if problem.mask == "bool":
        return padding.attend(parts, call, _attend)
    # An additive mask may be a variable itself: its gradient needs the masked computation.
    return differentiable(problem, call, lambda call: padding.attend(parts, call, _attend))


def _is_elsewhere(stream: mx.Stream | mx.Device | None) -> bool:
    if stream is None:
        return False
    device = stream.device if isinstance(stream, mx.Stream) else stream
    kind = device.type if isinstance(device, mx.Device) else device  # mx.cpu is only a kind
    return bool(kind != mx.default_device().type)
