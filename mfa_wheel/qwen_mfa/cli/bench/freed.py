"""A step whose modulation's weights were let go: in a process of its own, as they do not come back.

Run as ``python -m …`` with a request as JSON on standard input. The child draws the same model as
the parent, takes rounds of mflux's step and of the way with all weights in turn, lets the weights
go, and takes as many rounds after that: these are not interleaved, since nothing can follow them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.cli.bench import pipeline
from qwen_mfa.cli.bench.pipeline import HOST
from qwen_mfa.cli.bench.records import Case, Entry
from qwen_mfa.cli.bench.rounds import Rounds, interleaved
from qwen_mfa.cli.table import mebibytes, seconds

if TYPE_CHECKING:
    import argparse

    from qwen_mfa.cli.bench.step import Size

TIMEOUT = 3600.0


def measure(size: Size, name: str, args: argparse.Namespace) -> Case:
    """Measure the way ``name``, one of those that let weights go."""
    request = {
        "size": asdict(size),
        "way": name,
        "blocks": args.blocks,
        "bits": args.bits,
        "rounds": args.rounds,
        "heads": pipeline.HEADS,
        "text": pipeline.TEXT_DIM,
    }
    base = pipeline.described(size, args.blocks, args.bits)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_mfa.cli.bench.freed"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return _skipped(base, name, f"no answer within {TIMEOUT:g} s")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return _skipped(base, name, last)
    return _filled(base, name, found, size)


def _skipped(base: dict[str, Any], name: str, why: str) -> Case:
    return Case(**base, entries=(Entry(contestant=name, skipped=why),))


def _filled(base: dict[str, Any], name: str, found: dict[str, Any], size: Size) -> Case:
    rounds = Rounds(times=found["times"])
    entries = []
    for each in rounds.times:
        operations = pipeline.operations(size, base["sizes"]["blocks"], passes=2)
        entries.append(
            Entry(
                contestant=each,
                rounds=len(rounds.times[each]),
                seconds=rounds.time(each),
                gflops=operations / rounds.time(each).median / 1e9,
                gain=rounds.ratio(HOST, each),
                memory=found["memory"][each],
            )
        )
    same = "bit for bit those" if found["same"] else "NOT those"
    conclusions: dict[str, float | str] = {
        "freed": found["freed"],
        "letting go": found["letting go"],
        "same": (
            f"{name}, in a process of its own and after the others: {mebibytes(found['freed'])} of "
            f"weights let go in {seconds(found['letting go'])}; the next latents are {same} of the "
            "step with all weights."
        ),
    }
    return Case(**base, entries=tuple(entries), conclusions=conclusions)


def take(request: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process."""
    # Imported here: `step` imports this module.
    from qwen_mfa.cli.bench.step import Size  # noqa: PLC0415

    pipeline.HEADS, pipeline.TEXT_DIM = request["heads"], request["text"]
    name = request["way"]
    kept = pipeline.FREED[name]
    model = pipeline.draw(request["blocks"], request["bits"])
    steps = pipeline.steps(Size(**request["size"]), model)
    pipeline.warm([kept], steps)
    outputs, memory = {}, {}
    for each in (HOST, kept):
        with pipeline.within(each):
            outputs[each], _, memory[each] = pipeline.settled(steps[each])
    chosen = {each: steps[each] for each in (HOST, kept)}
    turns = {"rounds": request["rounds"], "warm_up": 0}
    *_, before = interleaved(chosen, **turns, within=pipeline.within)
    held = mx.get_active_memory()
    with pipeline.within(name):
        start = time.perf_counter()
        steps[name]()
        first = time.perf_counter() - start
        freed = held - mx.get_active_memory()
        outputs[name], _, memory[name] = pipeline.settled(steps[name])
        *_, after = interleaved({name: steps[name]}, **turns)
    return {
        "times": before.times | after.times,
        "memory": memory,
        "freed": freed,
        "letting go": first,
        "same": bool(mx.array_equal(outputs[kept], outputs[name]).item()),
    }


if __name__ == "__main__":
    print(json.dumps(take(json.load(sys.stdin))))
