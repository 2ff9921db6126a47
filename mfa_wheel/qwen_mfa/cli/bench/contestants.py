"""Who takes part: MLX, every native kernel that takes the problem, and peers that are installed.

A contestant is looked up by name in any process, so that its memory can be measured in one of its
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.cli.bench import peers
from qwen_mfa.cli.bench.shapes import Shape, draw
from qwen_mfa.kernels import mlx, registry
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call

# Computes the same call with padded keys dropped instead of masked.
REMOVED = " (padding removed)"


def names(call: Call, *, with_peers: bool) -> dict[str, str | None]:
    """Return every contestant's name, and why it does not take part, if it does not."""
    found = {kernel.name: kernel.refuses(call.problem) for kernel in registry.others()}
    found[mlx.name] = None
    if padding.visible_parts(call) is not None:
        found |= {name + REMOVED: reason for name, reason in found.items()}
    if with_peers:
        found |= {name: peers.refusal(name, call) for name in peers.NEEDED}
    return found


def contestant(name: str, call: Call) -> Callable[[], mx.array | Any]:
    """Return the work of contestant ``name``: it returns its evaluated result."""
    if name in peers.NEEDED:
        return peers.work(name, call)
    kernel = name.removesuffix(REMOVED)
    attention = _by(kernel)
    if name == kernel:
        return lambda: _evaluated(attention(call))
    parts = padding.visible_parts(call)
    if parts is None:
        msg = f"{name}: the mask cannot be removed"
        raise ValueError(msg)
    return lambda: _evaluated(padding.attend(parts, call, attention))


def prepared(arguments: dict[str, Any]) -> Callable[[], object]:
    """Return the work of one contestant for `footprint`; libraries are open and threads started."""
    name, dtype, mask = (arguments[key] for key in ("name", "dtype", "mask"))
    shape = Shape(**arguments["shape"])
    small = Shape(name="warm-up", batch=1, heads=2, seq_q=128, seq_kv=128, head_dim=shape.head_dim)
    contestant(name, draw(small, dtype, mask))()
    return contestant(name, draw(shape, dtype, mask))


def _by(name: str) -> Callable[[Call], mx.array]:
    kernel = registry.named(name)
    if kernel is None:
        return mlx.run

    def run(call: Call) -> mx.array:
        # What was cut out of K and V by the removal of padding is lazy still.
        mx.eval(call.arrays())
        return kernel.run(call)

    return run


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array
