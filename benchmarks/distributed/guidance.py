"""A step of mflux's Qwen-Image transformer on one device, and split over two by guidance.

    mlx.launch -n 2 --backend nccl -- python benchmarks/distributed/guidance.py 512 1024 2048

Random weights, 60 blocks at full width unless BLOCKS says otherwise, bfloat16, every other gain of
the integration switched on in both. Rounds alternate; medians. Rank 0 prints; all ranks compare the
next latents of both ways. Switching the integration on is not timed: users do it once.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa.cli.bench import pipeline
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux.together import membership

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.distributed.group import Team

ROUNDS = int(os.environ.get("ROUNDS", "7"))
# Settled, not measured: all ranks and both ways compute alike.
SWITCHES = {"precision": "bfloat16", "fused_blocks": "on"}
WAYS = {"one": "off", "two": "guidance"}
HEADINGS = ("picture", "one device", "split", "gain", "own pass", "waiting", "same bits")


def main(sides: list[int]) -> None:
    """Measure and print a Markdown table."""
    team = membership.team("guidance")
    if team is None:
        sys.exit("start it by mlx.launch")
    model = pipeline.draw(int(os.environ.get("BLOCKS", pipeline.ALL_BLOCKS)), 0)
    for name, how in WAYS.items():
        pipeline.WAYS[name] = pipeline.Way(switches={**SWITCHES, "distributed": how})
    if team.rank == 0:
        print(f"{team.size} ranks, {model.blocks} blocks: {'; '.join(team.names)}")
        print(f"| {' | '.join(HEADINGS)} |\n|---|---:|---:|---:|---:|---:|---|")
    for side in sides:
        size = SimpleNamespace(side=side // 16, text=100)
        steps = pipeline.steps(size, model)  # type: ignore[arg-type]
        row = _measure(team, side, {name: steps[name] for name in WAYS})
        if team.rank == 0:
            print(row, flush=True)
    team.part()


def _measure(team: Team, side: int, ways: dict[str, Callable[[], mx.array]]) -> str:
    times: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[float]] = {"passes": [], "waiting": []}
    outputs: dict[str, mx.array] = {}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            with mflux.enabled(**pipeline.WAYS[name].switches or {}):
                step = mflux.step()
                split = None if step is None or step.together is None else step.together.split
                outputs[name] = way()  # untimed: the other way left another memory and other clocks
                before = dict(split.seconds) if split else {}
                team.gather(mx.zeros(1), limit=600)  # start together
                start = time.perf_counter()
                way()
                if round_:
                    times[name].append(time.perf_counter() - start)
                    for part, seconds in before.items():
                        parts[part].append(split.seconds[part] - seconds if split else 0.0)
    same = bool(mx.array_equal(outputs["one"], outputs["two"]).item())
    told = team.tell({"same": same})
    gain = statistics.median(a / b for a, b in zip(times["one"], times["two"], strict=True))
    one, two, own, waiting = (
        f"{statistics.median(x) * 1e3:.1f} ms" for x in (*times.values(), *parts.values())
    )
    return (
        f"| {side} x {side} | {one} | {two} | {gain:.2f} x | {own} | {waiting} | "
        f"{all(each['same'] for each in told)} |"
    )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [512, 1024])
