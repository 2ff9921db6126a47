"""A step of mflux's Qwen-Image transformer on one device, and split over two by guidance.

    mlx.launch -n 2 --backend nccl -- python benchmarks/distributed/guidance.py 512 1024 2048

Random weights, 60 blocks at full width unless BLOCKS says otherwise, bfloat16, every other gain of
the integration switched on in both. Rounds alternate; medians. Rank 0 prints; all ranks compare the
next latents of both ways.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from types import SimpleNamespace

import mlx.core as mx

from qwen_mfa.cli.bench import pipeline
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux.together import membership

ROUNDS = 7
# Settled, not measured: all ranks and both ways compute alike.
SWITCHES = {"precision": "bfloat16", "fused_blocks": "on"}


def main(sides: list[int]) -> None:
    """Measure and print a Markdown table."""
    team = membership.team("guidance")
    if team is None:
        sys.exit("start it by mlx.launch")
    model = pipeline.draw(int(os.environ.get("BLOCKS", pipeline.ALL_BLOCKS)), 0)
    pipeline.WAYS["one"] = pipeline.Way(switches={**SWITCHES, "distributed": "off"})
    pipeline.WAYS["two"] = pipeline.Way(switches={**SWITCHES, "distributed": "guidance"})
    if team.rank == 0:
        print(f"{team.size} ranks, {model.blocks} blocks: {'; '.join(team.names)}")
        print("| picture | one device | split | gain | waiting | same bits |")
        print("|---|---:|---:|---:|---:|---|")
    for side in sides:
        size = SimpleNamespace(side=side // 16, text=100)
        steps = pipeline.steps(size, model)  # type: ignore[arg-type]
        ways = {name: steps[name] for name in ("one", "two")}
        found = {name: (way(), way())[1] for name, way in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        with mflux.enabled(**pipeline.WAYS["two"].switches or {}):
            step = mflux.step()
        split = None if step is None or step.together is None else step.together.split
        if split is None:
            sys.exit("the integration did not join the group")
        waited = split.seconds["waiting"]
        for _ in range(ROUNDS):
            for name, way in ways.items():
                team.gather(mx.zeros(1), limit=600)  # start together
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
        waited = (split.seconds["waiting"] - waited) / ROUNDS
        same = bool(mx.array_equal(found["one"], found["two"]).item())
        told = team.tell({"same": same})
        gain = statistics.median(a / b for a, b in zip(times["one"], times["two"], strict=True))
        if team.rank == 0:
            one, two = (statistics.median(times[name]) * 1e3 for name in ways)
            print(
                f"| {side} x {side} | {one:.1f} ms | {two:.1f} ms | {gain:.2f} x | "
                f"{waited * 1e3:.1f} ms | {all(each['same'] for each in told)} |",
                flush=True,
            )
    team.part()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [512, 1024])
