"""Who takes part: MLX, every native kernel that takes the problem, and peers that are installed.

A contestant is looked up by name in any process, so that its memory can be measured in one of its
own.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import candidates, padding
from qwen_mfa.kernels import mlx as reference
from qwen_mfa.problem import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels import Call

# Computes the same call with padded keys dropped instead of masked.
REMOVED = " (padding removed)"
TORCH = "torch"


def names(call: Call, *, with_peers: bool) -> dict[str, str | None]:
    """Return every contestant's name, and why it does not take part, if it does not."""
    problem = describe(call.q, call.k, call.v, call.mask)
    if problem is None:
        return {reference.name: None}
    found: dict[str, str | None] = {k.name: k.refuses(problem) for k in candidates.ALL}
    found[reference.name] = None
    if padding.visible_parts(problem, call.mask) is not None:
        found |= {name + REMOVED: reason for name, reason in found.items()}
    if with_peers:
        missing = importlib.util.find_spec(TORCH) is None
        found[TORCH] = "it is not installed" if missing else None
    return found


def contestant(name: str, call: Call) -> Callable[[], mx.array | Any]:
    """Return the work of contestant ``name``: it returns its evaluated result."""
    if name == TORCH:
        return _torch(call)
    kernel = name.removesuffix(REMOVED)
    attention = _by(kernel)
    if name == kernel:
        return lambda: _evaluated(attention(call))
    parts = padding.visible_parts(_described(call), call.mask)
    if parts is None:
        msg = f"{name}: the mask cannot be removed"
        raise ValueError(msg)
    return lambda: _evaluated(padding.attend(parts, call, attention))


def _by(name: str) -> Callable[[Call], mx.array]:
    kernel = candidates.named(name)
    if kernel is None:
        return lambda call: reference.run(None, call)

    def run(call: Call) -> mx.array:
        # What was cut out of K and V by the removal of padding is lazy still.
        mx.eval(call.arrays())
        return kernel.run(_described(call), call)

    return run


def _described(call: Call) -> Any:
    return describe(call.q, call.k, call.v, call.mask)


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array


def _torch(call: Call) -> Callable[[], Any]:
    torch = importlib.import_module(TORCH)

    def convert(array: mx.array) -> Any:
        # By way of float32, which holds every 16-bit value; BHSD seen over BSHD, as ours.
        dense = array.transpose(0, 2, 1, 3).astype(mx.float32)
        mx.eval(dense)
        kind = getattr(torch, str(array.dtype).removeprefix("mlx.core."))
        return torch.tensor(memoryview(dense)).to(kind).transpose(1, 2)  # type: ignore[arg-type]

    q, k, v = (convert(array) for array in (call.q, call.k, call.v))
    mask = None
    if isinstance(call.mask, mx.array):
        mask = torch.tensor(call.mask.tolist())
    attend = torch.nn.functional.scaled_dot_product_attention
    causal = call.mask == "causal" if isinstance(call.mask, str) else False

    def work() -> Any:
        with torch.no_grad():
            return attend(q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale)

    return work
