"""The public operation: `scaled_dot_product_attention`, safe inside MLX's transformations."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import telemetry
from qwen_mfa.errors import QwenMfaError
from qwen_mfa.kernels import mlx
from qwen_mfa.kernels.base import Call
from qwen_mfa.native import buffers
from qwen_mfa.problem import describe
from qwen_mfa.selection import choose, override, removal, session
from qwen_mfa.transforms import padding
from qwen_mfa.transforms.autodiff import Repeater, differentiable, evaluate

if TYPE_CHECKING:
    from qwen_mfa.selection.override import Policy

_CPU = mx.DeviceType.cpu
_TOO_LARGE = 1 << 1023  # for a float, or nearly so


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
        QwenMfaError: An environment variable of this package has a value that means nothing, or
            names a library, kernel or instruction set that cannot be used here.

    The native kernels compute eagerly: the inputs are evaluated first. Where that is not possible
    (while ``mx.compile`` or ``mx.vmap`` traces, or for lazy inputs of another thread's stream) the
    result is MLX's own operation in the caller's graph. Masks that only hide padded keys are
    replaced by shorter K and V (see `qwen_mfa.transforms.padding`). Under ``mx.grad``, ``mx.vjp``
    and ``mx.jvp`` the derivatives are MLX's. One difference: a row whose keys are all hidden by
    ``-inf`` in an additive mask is zeros here where MLX gives NaN.

    Source of the semantics: ``mlx/fast.cpp`` of MLX 0.32.

    Examples:
        >>> q = mx.random.normal((1, 4, 6, 32))
        >>> k, v = mx.random.normal((1, 2, 9, 32)), mx.random.normal((1, 2, 9, 32))
        >>> out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=32**-0.5, mask="causal")
        >>> out.shape, out.dtype
        ((1, 4, 6, 32), mlx.core.float32)

    """
    known = session.current
    wanted = override.of_context.get() or known.policy
    stays = False  # a mask that does for now, whatever it holds
    key: object
    try:
        what: object = mask
        if isinstance(mask, mx.array):
            stays = known.looks.staying(mask)
            what = (mask.shape, mask.dtype, stays)
        # Of v nothing: what goes straight is MLX's, which is right whatever v is. `_goes_straight`
        # sees to it that nothing unusual is found here.
        key = (
            q.shape,
            k.shape,
            q.dtype,
            k.dtype,
            what,
            None if sinks is None else (sinks.shape, sinks.dtype),
            stream,
            mx.default_device().type is _CPU,
            wanted,
        )
        tally = known.straight.get(key)
    except (AttributeError, TypeError):  # arguments that MLX rejects
        key = tally = None
    if tally is not None and not telemetry.recorder.subscribers:
        # The steady state where MLX's kernel is chosen: nothing but this look-up is added to it.
        tally.add()
        return mlx.attention(
            q, k, v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
        )
    if not (force_fused or telemetry.recorder.subscribers) and _is_usual(q, k, v, scale):
        found = None
        if (repeater := known.repeaters.get(key)) is not None:
            found = repeater.attend(q, k, v, scale)
        elif (shortener := known.shorteners.get(key)) is not None:
            found = shortener.attend(q, k, v, mask, scale)
        if found is not None:
            return found
    if force_fused or not _is_number(scale) or describe(q, k, v, mask, sinks) is None:
        return _judged_by_mlx(q, k, v, scale, mask, sinks, force_fused, stream)
    call = Call(q=q, k=k, v=v, scale=scale, mask=mask, sinks=sinks, stream=stream)
    return _attend(call, wanted, key, stays=stays)


def _is_usual(q: object, k: object, v: object, scale: object) -> bool:
    """Whether nothing is amiss with what a key does not tell: the types, and all of v."""
    return (
        isinstance(scale, (int, float))
        and isinstance(q, mx.array)
        and isinstance(k, mx.array)
        and isinstance(v, mx.array)
        and v.shape == k.shape
        and v.dtype == k.dtype
    )


def _is_number(scale: object) -> bool:
    """Whether kernels can be given it. MLX converts other types, and raises on too large an int."""
    return isinstance(scale, float) or (isinstance(scale, int) and abs(scale) < _TOO_LARGE)


def _judged_by_mlx(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
    force_fused: bool,
    stream: mx.Stream | mx.Device | None,
) -> mx.array:
    telemetry.record(describe(q, k, v, mask, sinks), mlx.name, "MLX judges this call")
    live = buffers.working_stream()
    if live is not None and not isinstance(stream, mx.Stream):
        stream = live
    return mlx.attention(
        q, k, v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream
    )


def _attend(call: Call, wanted: Policy, key: object = None, *, stays: bool = False) -> mx.array:
    stream = buffers.working_stream()
    if stream is None:
        return _dispatch(call, wanted, key, stays=stays)
    # In a forked child MLX's default streams are dead, also for what MLX's own kernel computes.
    if isinstance(call.stream, mx.Stream):
        return _dispatch(call, wanted)
    with mx.stream(stream):
        return _dispatch(replace(call, stream=None), wanted)


def _dispatch(call: Call, wanted: Policy, key: object = None, *, stays: bool = False) -> mx.array:
    known = session.current
    generation = known.generation
    inputs = _Inputs(call)
    if isinstance(call.mask, mx.array) and not stays:
        found = removal.parts_to_compute(call, wanted, inputs.are_evaluated)
        if found is not None:
            out = _without_padding(*found, call, wanted)
            if key is not None and call.stream is None:
                shortener = removal.shortener(*found, call, wanted, telemetry.recorder.tally)
                if shortener is not None:
                    known.keep_shortener(key, shortener, generation)
            return out
    choice = choose.choose(call.problem, wanted=wanted, may_measure=inputs.are_evaluated)
    if choice.kernel is mlx:
        if choice.final and key is not None and _goes_straight(call, stays=stays):
            known.keep_straight(key, telemetry.recorder.tally(mlx.name, choice.reason), generation)
        return _by_mlx(call, choice.reason)
    if _is_elsewhere(call.stream):
        return _by_mlx(call, "the caller's stream is of another device than MLX's default")
    if not inputs.are_evaluated():
        return _by_mlx(call, "inside mx.compile or mx.vmap, or a lazy foreign input")
    out = differentiable(call, partial(_run, choice))
    if key is not None and choice.final and (repeater := _repeater(call, choice)) is not None:
        known.keep_repeater(key, repeater, generation)
    return out


def _repeater(call: Call, choice: choose.Choice) -> Repeater | None:
    """Return what computes calls like ``call`` from now on; it was computed once."""
    make = getattr(choice.kernel, "repeated", None)
    unusual = (
        *(call.sinks is not None, call.stream is not None, isinstance(call.mask, mx.array)),
        *(call.q.dtype != call.k.dtype, not call.has_usual_values),
        call.scale == 0,  # which has two signs, that gradients show
    )
    if make is None or any(unusual):
        return None
    try:
        repeated = make(call)
    except (QwenMfaError, RuntimeError, ValueError, MemoryError):
        return None  # the result is there, and no call may fail for what would help the next
    if repeated is None:
        return None
    return Repeater(call, repeated, telemetry.recorder.tally(choice.kernel.name, choice.reason))


def _goes_straight(call: Call, *, stays: bool) -> bool:
    """Whether all calls of this kind are MLX's, whatever a mask holds: it may hide padding.

    That of v which k does not tell (its dtype, its head dimension) has to be as usual: there, what
    was found for this call must not be taken for the others.
    """
    if not call.has_usual_values:
        return False
    return stays or not isinstance(call.mask, mx.array) or not padding.may_apply(call.problem)


class _Inputs:
    """Evaluates a call's inputs once, when that is asked for."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._possible: bool | None = None

    def are_evaluated(self) -> bool:
        """Evaluate them, and tell whether that was possible."""
        if self._possible is None:
            self._possible = evaluate(self._call)
        return self._possible


def _by_mlx(call: Call, reason: str) -> mx.array:
    telemetry.record(call.problem, mlx.name, reason)
    return mlx.run(call)


def _run(choice: choose.Choice, call: Call) -> mx.array:
    start = time.perf_counter()
    outcome = choose.run(choice.kernel, call)
    if outcome.failure is None:
        seconds = time.perf_counter() - start
        telemetry.record(call.problem, choice.kernel.name, choice.reason, seconds)
    else:
        telemetry.record(call.problem, mlx.name, outcome.failure)
    return outcome.result


def _without_padding(
    parts: tuple[padding.Part, ...], reason: str, call: Call, wanted: Policy
) -> mx.array:
    telemetry.record(call.problem, None, reason)
    attend = partial(_attend, wanted=wanted)
    if call.problem.mask == "bool":
        return padding.attend(parts, call, attend)
    # An additive mask may be a variable itself: its gradient needs the masked computation.
    return differentiable(call, lambda call: padding.attend(parts, call, attend))


def _is_elsewhere(stream: mx.Stream | mx.Device | None) -> bool:
    if stream is None:
        return False
    device = stream.device if isinstance(stream, mx.Stream) else stream
    kind = device.type if isinstance(device, mx.Device) else device  # mx.cpu is only a kind
    return bool(kind != mx.default_device().type)
