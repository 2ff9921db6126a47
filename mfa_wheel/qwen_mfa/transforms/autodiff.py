"""Running an eager kernel inside MLX's lazy world: inputs evaluated, derivatives MLX's own."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from qwen_mfa import exits
from qwen_mfa.kernels import mlx
from qwen_mfa.native.buffers import working_stream
from qwen_mfa.problem import MLX_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qwen_mfa.kernels.base import Call, Repeated
    from qwen_mfa.problem import Problem
    from qwen_mfa.tally import Tally


def evaluate(call: Call) -> bool:
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


def misfit(problem: Problem, out: object) -> str | None:
    """Return why ``out`` cannot be the result of ``problem``, whatever its values, or ``None``."""
    wanted = (problem.batch, problem.heads_q, problem.seq_q, problem.value_dim)
    if not isinstance(out, mx.array):
        return f"it returns {type(out).__name__}, not an array"
    if out.shape != wanted:
        return f"it returns shape {out.shape} instead of {wanted}"
    if out.dtype != MLX_DTYPES[problem.dtype]:
        return f"it returns {out.dtype} instead of {problem.dtype}"
    return None


def differentiable(call: Call, compute: Callable[[Call], mx.array]) -> mx.array:
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

    function = with_derivatives(
        lambda *arrays: compute(with_arrays(arrays)), lambda *arrays: mlx.run(with_arrays(arrays))
    )
    stream = working_stream()
    with exits.inside(), mx.stream(stream) if stream else nullcontext():
        return function(*call.arrays())


class Repeater:
    """Computes calls of one kind by the same kernel, once all about them is decided.

    As `differentiable`, but without making anew at each call what does not change: on the CPU that
    takes longer than the attention of 64 tokens.
    """

    def __init__(self, call: Call, repeated: Repeated, tally: Tally) -> None:
        """Compute calls like ``call``: no sinks, all of one dtype, v as k, no array for a mask.

        Args:
            call: The call.
            repeated: The kernel, for such calls.
            tally: Counts them.

        """
        self._scale, self._tally = call.scale, tally
        scale, mask = call.scale, call.mask  # the functions must not hold the call's arrays

        def forward(*arrays: mx.array) -> mx.array:
            found = repeated.run(*arrays)
            if found is None:
                raise _AnotherCall
            return found

        def original(*arrays: mx.array) -> mx.array:
            return mlx.attention(*arrays, scale=scale, mask=mask)

        self._function = with_derivatives(forward, original)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array | None:
        """Compute the call, v as k, or return ``None`` if it is not one of these after all."""
        if scale != self._scale:
            return None
        try:
            with exits.inside():
                mx.eval(q, k, v)
                found = self._function(q, k, v)
        except (_AnotherCall, ValueError, RuntimeError, MemoryError):
            return None
        self._tally.add()
        return found


class _AnotherCall(Exception):  # noqa: N818 - it is no error: such a call goes the general way
    pass


def with_derivatives(
    forward: Callable[..., mx.array], original: Callable[..., mx.array]
) -> Callable[..., mx.array]:
    """Return a function that computes by ``forward`` and has the derivatives of ``original``."""

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
    return cast("Callable[..., mx.array]", function)
