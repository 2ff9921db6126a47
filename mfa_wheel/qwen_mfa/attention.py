"""The public operation: `scaled_dot_product_attention`, safe inside MLX's transformations."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from qwen_mfa import dispatch, events, padding
from qwen_mfa.arrays import working_stream
from qwen_mfa.kernels import Call
from qwen_mfa.kernels import mlx as reference
from qwen_mfa.problem import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    replaced by shorter K and V (see `qwen_mfa.padding`). Under ``mx.grad``, ``mx.vjp`` and
    ``mx.jvp`` the derivatives are MLX's. One difference: a row whose keys are all hidden by
    ``-inf`` in an additive mask is zeros here where MLX gives NaN.

    Source of the semantics: ``mlx/fast.cpp`` of MLX 0.32.

    """
    call = Call(
        q=q, k=k, v=v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
    )
    return _attend(call)


def _attend(call: Call) -> mx.array:
    problem = describe(call.q, call.k, call.v, call.mask, call.sinks)
    if problem is None or not isinstance(call.scale, (int, float)) or call.force_fused:
        return _by_mlx(problem, call, "MLX judges this call")
    parts = padding.visible_parts(problem, call.mask)
    if parts is not None:
        return _without_padding(parts, problem, call)
    choice = dispatch.choose(problem)
    if choice.kernel is reference:
        return _by_mlx(problem, call, choice.reason)
    if not _on_cpu(call.stream):
        return _by_mlx(problem, call, "the caller's stream is not the CPU's")
    if not _evaluate(call):
        return _by_mlx(problem, call, "inside mx.compile or mx.vmap, or a lazy foreign input")
    return _differentiable(problem, call, partial(_run, choice, problem))


def _by_mlx(problem: Problem | None, call: Call, reason: str) -> mx.array:
    if events.wanted():
        events.emit(events.Event(problem=problem, kernel=reference.name, reason=reason))
    return reference.run(problem, call)


def _run(choice: dispatch.Choice, problem: Problem, call: Call) -> mx.array:
    if not events.wanted():
        return dispatch.run(choice.kernel, problem, call)
    start = time.perf_counter()
    result = dispatch.run(choice.kernel, problem, call)
    seconds = time.perf_counter() - start
    # A kernel that failed was replaced by MLX and is quarantined: no longer the choice.
    now = dispatch.choose(problem)
    failed = now.kernel is not choice.kernel
    events.emit(
        events.Event(
            problem=problem,
            kernel=reference.name if failed else choice.kernel.name,
            reason=(now if failed else choice).reason,
            seconds=None if failed else seconds,
        )
    )
    return result


def _without_padding(parts: tuple[padding.Part, ...], problem: Problem, call: Call) -> mx.array:
    if events.wanted():
        reason = "the mask only hides padded keys"
        events.emit(events.Event(problem=problem, kernel=None, reason=reason))
    if problem.mask == "bool":
        return padding.attend(parts, call, _attend)
    # An additive mask may be a variable itself: its gradient needs the masked computation.
    return _differentiable(problem, call, lambda call: padding.attend(parts, call, _attend))


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


def _differentiable(problem: Problem, call: Call, compute: Callable[[Call], mx.array]) -> mx.array:
    """Run ``compute`` as a custom function, so that gradients are MLX's.

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
        return compute(with_arrays(arrays))

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
