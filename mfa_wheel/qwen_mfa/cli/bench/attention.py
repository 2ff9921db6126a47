"""Attention on this machine: every kernel, MLX and installed peers, in interleaved rounds.

Shapes: qwen-512, qwen-1024, qwen-1328, qwen-2048 (one image of that many pixels a side, with 100
text tokens), or B,H,SQ,SKV,D. A contestant that would take longer than --limit a call is left out,
and said to be.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_mfa import library
from qwen_mfa.cli import info
from qwen_mfa.cli.bench import footprint, plot, records, shapes
from qwen_mfa.cli.bench.common import Progress, count
from qwen_mfa.cli.bench.contestants import REMOVED, contestant, names
from qwen_mfa.cli.bench.records import Case, Entry, Report
from qwen_mfa.cli.bench.rounds import Rounds, Spread, interleave
from qwen_mfa.cli.sample import DTYPES
from qwen_mfa.errors import LibraryError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from qwen_mfa.kernels import Call

HELP = "measure attention for Qwen-Image's shapes or any other"
AGAIN = "mlx, again"
PROBE_LENGTH = 256
SETTLE = 0.1
LEAST = 0.02  # seconds: what is quicker is timed several times in a row
MOST_REPEATS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shapes", nargs="*", type=shapes.parse, metavar="SHAPE")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["bfloat16"], help="element types"
    )
    parser.add_argument("--mask", nargs="+", choices=shapes.MASKS, default=["none"])
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds (default 5)")
    parser.add_argument(
        "--limit", type=float, default=30.0, metavar="S", help="longest call, seconds (default 30)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also PyTorch, JAX, ONNX Runtime and NumPy"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="keep the JSON there, from the first round on"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PREFIX", help="draw PREFIX.png and PREFIX.svg (matplotlib)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure every case and print."""
    if args.plot:
        plot.require()
    report = Report(bench="attention", machine=info.gather())
    wanted = args.shapes or [shapes.NAMED["qwen-512"]]
    cases = [(s, d, m) for s in wanted for d in args.dtype for m in args.mask]

    def keep(case: Case | None) -> None:
        if args.out:
            done = [*report.cases, case] if case else report.cases
            replace(report, cases=done).save(args.out)

    for number, (shape, dtype, mask) in enumerate(cases, 1):
        progress = Progress(f"[{number}/{len(cases)}] {shape.name} {dtype} mask {mask}")
        case = measure(shape, dtype, mask, args, progress=progress, keep=keep)
        report.cases.append(case)
        keep(None)
        if not args.json and not args.markdown:
            print(records.as_text([case]), end="\n\n", flush=True)
    report.complete = True
    keep(None)
    if args.json:
        print(report.as_json())
    if args.markdown:
        print(records.as_markdown(report.cases))
    if args.plot:
        for file in plot.draw(json.loads(report.as_json()), args.plot):
            print(file)
    return 0


def measure(
    shape: shapes.Shape,
    dtype: str,
    mask: str,
    args: argparse.Namespace,
    *,
    progress: Progress,
    keep: Callable[[Case], None],
) -> Case:
    """Measure one case; ``keep`` receives it after every round."""
    progress("drawing")
    call = shapes.draw(shape, dtype, mask)
    work, skipped, predicted = _field(shape, dtype, mask, call, args)
    if predicted.get("mlx", 0) < args.limit / 4 and "mlx" in work:
        work[AGAIN] = contestant("mlx", call)
    peaks: list[float] = []
    sizes = {
        "B": shape.batch,
        "H": shape.heads,
        "Sq": shape.seq_q,
        "Skv": shape.seq_kv,
        "D": shape.head_dim,
    }
    base = Case(shape=shape.name, sizes=sizes, dtype=dtype, mask=mask)

    def case(rounds: Rounds, memory: dict[str, int | None]) -> Case:
        peak = Spread.of(peaks).median if peaks else None
        noise = rounds.ratio("mlx", AGAIN) if rounds.times.get(AGAIN) else None
        entries = [_entry(name, shape, rounds, peak, memory) for name in work if name != AGAIN]
        return replace(
            base,
            peak_gflops=peak and peak / 1e9,
            noise=noise,
            entries=(*entries, *skipped),
        )

    def on_round(number: int, rounds: Rounds) -> None:
        progress(f"round {number} of {args.rounds}")
        peak = _peak()
        if peak:
            peaks.append(peak)
        keep(case(rounds, {}))

    progress("warming up")
    # A call of many seconds needs no warming up, and its rounds are few enough as they are.
    slow = max(predicted.values(), default=0) > 2
    rounds = interleave(
        work,
        rounds=args.rounds,
        warm_up=0 if slow else 1,
        settle=SETTLE,
        repeats={name: _repeats(predicted.get(name, predicted.get("mlx", LEAST))) for name in work},
        on_round=on_round,
    )
    memory: dict[str, int | None] = {}
    if not args.no_memory:
        for name in work:
            if name != AGAIN:
                progress(f"memory of {name}")
                limit = 60 + 10 * args.limit
                memory[name] = footprint.measure(name, shape, dtype, mask, timeout=limit)
    progress("")
    return case(rounds, memory)


def _field(
    shape: shapes.Shape, dtype: str, mask: str, call: Call, args: argparse.Namespace
) -> tuple[dict[str, Callable[[], object]], list[Entry], dict[str, float]]:
    """Return who takes part, who does not, and how long each call will take, roughly."""
    small = replace(
        shape,
        seq_q=min(shape.seq_q, PROBE_LENGTH),
        seq_kv=min(shape.seq_kv, PROBE_LENGTH),
    )
    probe = shapes.draw(small, dtype, mask)
    work: dict[str, Callable[[], object]] = {}
    skipped: list[Entry] = []
    predicted: dict[str, float] = {}
    for name, refusal in names(call, with_peers=args.peers).items():
        reason = refusal
        if reason is None:
            # The probe's mask may be another kind of padding; time is all that is asked.
            predicted[name] = _time(contestant(name.removesuffix(REMOVED), probe)) * (
                shape.flops / small.flops
            )
            if predicted[name] <= args.limit:
                work[name] = contestant(name, call)
                continue
            reason = f"about {predicted.pop(name):.0f} s a call, more than --limit"
        skipped.append(Entry(contestant=name, skipped=reason))
    return work, skipped, predicted


def _repeats(seconds: float) -> int:
    return max(1, min(MOST_REPEATS, round(LEAST / max(seconds, 1e-9))))


def _entry(
    name: str,
    shape: shapes.Shape,
    rounds: Rounds,
    peak: float | None,
    memory: dict[str, int | None],
) -> Entry:
    times = rounds.times[name]
    if not times:
        return Entry(contestant=name)
    rate = shape.flops / rounds.time(name).median
    gain = rounds.ratio("mlx", name) if len(rounds.times.get("mlx", ())) == len(times) else None
    return Entry(
        contestant=name,
        rounds=len(times),
        seconds=rounds.time(name),
        gflops=rate / 1e9,
        of_peak=rate / peak if peak else None,
        gain=gain,
        memory=memory.get(name),
    )


def _peak() -> float | None:
    try:
        return library.load().peak()
    except LibraryError:
        return None


def _time(work: Callable[[], object]) -> float:
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
