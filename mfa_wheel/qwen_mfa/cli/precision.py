"""What bfloat16 would take on this machine, measured on a block of Qwen-Image.

mflux's latents are float32, which makes every product of its transformer a float32 one although
the weights are bfloat16. Some processors (M1 and M2, most CPUs) emulate bfloat16: there it is
slower, and this says so.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa.qwen_image import TransformerBlock, rope_tables
from qwen_mfa.selection.override import use

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.qwen_image import RopeTables

HEAD_DIM = 128
# Heads and side of the picture in tokens: the full width on a GPU; what a CPU computes in 0.1 s.
ON_GPU, ON_CPU = (24, 32), (3, 8)
TEXT = 20
ROUNDS = 5
WORTH = 1.1  # below that, noise and a changed picture weigh more


def measure() -> float:
    """Return time(float32 inputs) / time(bfloat16 inputs) of a block with bfloat16 weights."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    heads, side = ON_GPU if on_gpu else ON_CPU
    block = TransformerBlock(dim=heads * HEAD_DIM, heads=heads, head_dim=HEAD_DIM)
    block.set_dtype(mx.bfloat16)
    mx.eval(block.parameters())  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
    tables = rope_tables([(1, side, side)], TEXT)
    width = heads * HEAD_DIM
    shapes = ((1, side * side, width), (1, TEXT, width), (1, width))
    ways = [_step(block, tables, shapes, dtype) for dtype in (mx.float32, mx.bfloat16)]
    with use("mlx"):  # whatever is forced or broken elsewhere
        for way in ways:
            way()
        return statistics.median(_timed(ways[0]) / _timed(ways[1]) for _ in range(ROUNDS))


def sentence(gain: float) -> str:
    """Say what a measured gain means."""
    if gain >= WORTH:
        return (
            f"--precision bfloat16 would make a block {gain:.1f} x as fast here (measured; the "
            "picture changes a little)"
        )
    if gain > 1 / WORTH:
        return "--precision bfloat16 would make no difference here (measured on a block)"
    return f"--precision bfloat16 would be slower here ({gain:.2f} x, measured on a block)"


def _step(
    block: TransformerBlock,
    tables: RopeTables,
    shapes: tuple[tuple[int, ...], ...],
    dtype: mx.Dtype,
) -> Callable[[], None]:
    inputs = [mx.random.normal(shape).astype(dtype) for shape in shapes]
    mx.eval(inputs)

    def run() -> None:
        mx.eval(block(*inputs, rope=tables))

    return run


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
