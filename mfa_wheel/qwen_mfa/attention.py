"""The public operation: `scaled_dot_product_attention`, safe inside MLX's transformations."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from qwen_mfa import dispatch
from qwen_mfa.arrays import working_stream
from qwen_mfa.kernels import Call
from qwen_mfa.kernels import mlx as reference
from qwen_mfa.problem import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwen_mfa.kernels import Kernel
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
    result is MLX's own operation in the caller's graph. Under ``mx.grad``, ``mx.vjp`` and
    ``mx.jvp`` the derivatives are MLX's. One difference: a row whose keys are all hidden by
    ``-inf`` in an additive mask is zeros here where MLX gives NaN.

    Source of the semantics: ``mlx/fast.cpp`` of MLX 0.32.

    """
    call = Call(
        q=q, k=k, v=v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
    )
    problem = describe(q, k, v, mask, sinks)
    if problem is None or not isinstance(scale, (int, float)) or force_fused:
        return reference.run(problem, call)
    kernel = dispatch.choose(problem).kernel
    if kernel is reference or not _on_cpu(stream) or not _evaluate(call):
        return reference.run(problem, call)
    return _differentiable(kernel, problem, call)


def _on_cpu(stream: mx.Stream | mx.Device | None) -> bool:
    if stream is None:
        return True
    device = stream.device if isinstance(stream, mx.Stream) else stream
    return bool(device == mx.cpu)


def _evaluate(call: Call) -> bool:
    """Evaluate the inputs; tell whether that was possible.

    MLX raises ValueError while it traces for compile or vmap, and RuntimeError for a lazy array
    whose stream lives in another thread. An error of the inputs' own computation surfaces again,
    unchanged, when MLX evaluates the graph that we return instead.
    """
    try:
        mx.eval(call.arrays())
    except (ValueError, RuntimeError):
        return False
    return True


def _differentiable(kernel: Kernel, problem: Problem, call: Call) -> mx.array:
    """Run ``kernel`` as a custom function, so that gradients are MLX's.

    An array made from raw memory is a constant to ``mx.grad``: without this, gradients come out
    as zeros, silently.
    """

    def with_arrays(arrays: Sequence[mx.array]) -> Call:
        rest = list(arrays[3:])
        mask = rest.pop(0) if isinstance(call.mask, mx.array) else call.mask
        sinks = rest.pop(0) if call.sinks is not None else None
        q, k, v = arrays[:3]
        return replace(call, q=q, k=k, v=v, mask=mask, sinks=sinks)

    def original(*arrays: mx.array) -> mx.array:
        return reference.run(problem, with_arrays(arrays))

    def forward(*arrays: mx.array) -> mx.array:
        return dispatch.run(kernel, problem, with_arrays(arrays))

    def vjp(primals: Sequence[mx.array], cotangent: mx.array, _out: mx.array) -> list[mx.array]:
        _, grads = mx.vjp(lambda *xs: [original(*xs)], list(primals), [cotangent])
        return list(grads)

    def jvp(primals: Sequence[mx.array], tangents: Sequence[mx.array | None]) -> mx.array:
        dense = [
            mx.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)
        ]
        _, out = mx.jvp(lambda *xs: [original(*xs)], list(primals), dense)
        return out[0]

    function = mx.custom_function(forward)
    function.vjp(vjp)
    function.jvp(jvp)
    stream = working_stream()
    with mx.stream(stream) if stream else nullcontext():
        return cast("mx.array", function(*call.arrays()))
