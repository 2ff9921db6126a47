"""MLX's own attention: always available, and the fallback of every other kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem

name = "mlx"
roundoff = 2**-8  # bfloat16 all the way, on the CPU
needs_child_validation = False

# MLX's function as it was before anybody could put ours in its place: this module is imported
# before ours can be had. Looked up by name later, it could be ours.
attention = cast("Callable[..., mx.array]", mx.fast.scaled_dot_product_attention)


def refuses(problem: Problem) -> str | None:  # noqa: ARG001
    """MLX takes every problem."""
    return None


def run(call: Call) -> mx.array:
    """Return MLX's own operation, lazily, in the caller's graph."""
    return attention(
        call.q,
        call.k,
        call.v,
        scale=call.scale,
        mask=call.mask,
        sinks=call.sinks,
        stream=call.stream,
    )
