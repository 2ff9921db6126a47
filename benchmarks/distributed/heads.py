"""Does splitting the heads of one attention over ranks gain anything over this link?

    mlx.launch -n 2 -- python benchmarks/distributed/heads.py 512 1024 2048

Per picture size: one attention of Qwen-Image (B 1, H 24, D 128, bfloat16, image and 100 text
tokens) computed whole by every rank, and split: each rank its share of the heads, then the results
gathered. Rounds alternate; medians. Rank 0 prints. docs/distributed.md has what was measured.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS, HEAD_DIM, TEXT, ROUNDS, BLOCKS = 24, 128, 100, 15, 10


def main(sides: list[int]) -> None:
    """Measure and print a Markdown table."""
    group = mx.distributed.init(strict=True)
    rank, size = group.rank(), group.size()
    if rank == 0:
        print(f"{size} ranks, {BLOCKS} attentions a round, ms each; the link carries MB per rank")
        print("| picture | tokens | whole | split | gain | gathering alone | MB |")
        print("|---|---:|---:|---:|---:|---:|---:|")
    share = slice(rank * HEADS // size, (rank + 1) * HEADS // size)
    for side in sides:
        tokens = (side // 16) ** 2 + TEXT
        shape = (1, HEADS, tokens, HEAD_DIM)
        q, k, v = (mx.random.normal(shape, key=mx.random.key(i)) for i in range(3))
        q, k, v = (x.astype(mx.bfloat16) for x in (q, k, v))
        mine = [mx.contiguous(x[:, share]) for x in (q, k, v)]
        mx.eval(q, k, v, *mine)
        ways = {
            "whole": partial(_attend, k=k, v=v),
            "split": partial(_split, k=mine[1], v=mine[2], group=group),
            "gather": partial(_gathered, group=group),
        }
        starts = {"whole": q, "split": mine[0], "gather": mine[0]}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(ROUNDS + 2):
            for name, way in ways.items():
                mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))  # start together
                seconds = _time(way, starts[name], mine[0] if name != "whole" else q)
                if round_ >= 2:
                    times[name].append(seconds / BLOCKS * 1e3)
        gain = statistics.median(a / b for a, b in zip(times["whole"], times["split"], strict=True))
        if rank == 0:
            whole, split, gather = (statistics.median(times[name]) for name in ways)
            mb = tokens * HEADS * HEAD_DIM * 2 / size / 1e6
            print(
                f"| {side} x {side} | {tokens} | {whole:.2f} | {split:.2f} | {gain:.2f} | "
                f"{gather:.2f} | {mb:.1f} |",
                flush=True,
            )


def _attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5)


def _split(q: mx.array, k: mx.array, v: mx.array, group: mx.distributed.Group) -> mx.array:
    return _gathered(_attend(q, k, v), group)


def _gathered(x: mx.array, group: mx.distributed.Group) -> mx.array:
    """Gather ``[1, H / ranks, S, D]`` of all ranks: ``[1, H, S, D]``."""
    return mx.distributed.all_gather(x[0], group=group)[None]


def _time(way: Callable[[mx.array], mx.array], start: mx.array, like: mx.array) -> float:
    begin = time.perf_counter()
    x = start
    for _ in range(BLOCKS):
        # The next attention depends on this one's whole result, as blocks do.
        x = way(x)[:, : like.shape[1]]
    mx.eval(x)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [512, 1024])
