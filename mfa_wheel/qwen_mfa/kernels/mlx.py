"""MLX's own attention: the reference, always available, and the fallback of every other kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem

name = "mlx"
roundoff = 2**-8  # bfloat16 all the way, on the CPU
needs_child_proof = False


def refuses(problem: Problem) -> str | None:  # noqa: ARG001
    """MLX takes every problem."""
    return None


def run(problem: Problem | None, call: Call) -> mx.array:  # noqa: ARG001
    """Return MLX's own operation, lazily, in the caller's graph."""
    return mx.fast.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        scale=call.scale,
        mask=call.mask,
        sinks=call.sinks,
        force_fused=call.force_fused,
        stream=call.stream,
    )
