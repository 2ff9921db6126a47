"""Attention on this machine: every kernel, MLX and installed peers, in interleaved rounds.

Shapes: qwen-512, qwen-1024, qwen-1328, qwen-2048 (one image of that many pixels a side, with 100
text tokens), or B,H,SQ,SKV,D. A contestant that would take longer than --limit a call is left out,
and said to be.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from qwen_mfa.cli import device, info
from qwen_mfa.cli.arguments import some_of
from qwen_mfa.cli.bench import footprint, peers, shapes
from qwen_mfa.cli.bench.common import Progress, add_outputs, collect, count
from qwen_mfa.cli.bench.contestants import REMOVED, contestant, names
from qwen_mfa.cli.bench.records import Case, Entry, Report
from qwen_mfa.cli.bench.rounds import Rounds, interleaved
from qwen_mfa.cli.sample import DTYPES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from qwen_mfa.kernels.base import Call

AGAIN = "mlx, again"
PROBE_LENGTH = 256
SETTLE = 0.15
LEAST = 0.02  # seconds: what is quicker is timed several times in a row
MAX_REPEATS = 1000
SURELY_QUICK = 0.5  # seconds


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shapes", nargs="*", type=shapes.parse, metavar="SHAPE")
    parser.add_argument(
        "--dtype",
        type=some_of(DTYPES),
        default=["bfloat16"],
        metavar="NAMES",
        help=f"of {', '.join(DTYPES)}; several with commas between (default bfloat16)",
    )
    parser.add_argument(
        "--mask",
        type=some_of(shapes.MASKS),
        default=["none"],
        metavar="NAMES",
        help=f"of {', '.join(shapes.MASKS)}; several with commas between (default none)",
    )
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds (default 5)")
    parser.add_argument(
        "--limit", type=float, default=30.0, metavar="S", help="longest call, seconds (default 30)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also PyTorch, JAX, ONNX Runtime and NumPy"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure every case and print."""
    wanted = args.shapes or [shapes.NAMED["qwen-512"]]
    problems = [(s, d, m) for s in wanted for d in args.dtype for m in args.mask]
    progress = Progress()

    def cases() -> Iterator[Case]:
        for number, (shape, dtype, mask) in enumerate(problems):

            def show(
                done: float, detail: str, number: int = number, name: str = shape.name
            ) -> None:
                progress((number + done) / len(problems), f"{name}: {detail}")

            yield from measure(shape, dtype, mask, args, progress=show)

    collect(Report(bench="attention", machine=info.gather()), cases(), args, progress)
    return 0


def measure(
    shape: shapes.Shape,
    dtype: str,
    mask: str,
    args: argparse.Namespace,
    *,
    progress: Callable[[float, str], None],
) -> Iterator[Case]:
    """Measure one case; give what there is of it after every round."""
    progress(0, "drawing")
    call = shapes.draw(shape, dtype, mask)
    work, skipped, predicted = _field(shape, dtype, mask, call, args)
    if predicted.get("mlx", 0) < args.limit / 4 and "mlx" in work:
        work[AGAIN] = contestant("mlx", call)
    peaks: list[float] = []
    base = Case(shape=shape.name, sizes=shape.sizes(), dtype=dtype, mask=mask, complete=False)
    rounds = Rounds(times={name: [] for name in work})

    def case(rounds: Rounds, memory: dict[str, int | None]) -> Case:
        peak = max(peaks, default=None)  # what disturbs only lowers it
        noise = rounds.ratio("mlx", AGAIN) if rounds.times.get(AGAIN) else None
        entries = [_entry(name, shape, rounds, peak, memory) for name in work if name != AGAIN]
        return replace(
            base,
            peak_gflops=peak and peak / 1e9,
            peak_means=device.peak_means(),
            noise=noise,
            entries=(*entries, *skipped),
            conclusions=against_peers(rounds),
        )

    progress(0, "warming up")
    # A call of many seconds needs no warming up, and its rounds are few enough as they are.
    slow = max(predicted.values(), default=0) > 2
    for number, rounds in enumerate(
        interleaved(
            work,
            rounds=args.rounds,
            warm_up=0 if slow else 1,
            settle=SETTLE,
            repeats={name: _repeats(predicted.get(name, predicted.get("mlx", 0))) for name in work},
        ),
        1,
    ):
        progress(number / (args.rounds + 1), f"round {number} of {args.rounds}")
        time.sleep(SETTLE)
        peak = device.peak_rate(dtype)
        if peak:
            peaks.append(peak)
        yield case(rounds, {})
    memory: dict[str, int | None] = {}
    if not args.no_memory:
        for name in work:
            if name != AGAIN:
                progress(args.rounds / (args.rounds + 1), f"memory of {name}")
                memory[name] = footprint.measure(
                    "qwen_mfa.cli.bench.contestants",
                    {"name": name, "shape": asdict(shape), "dtype": dtype, "mask": mask},
                    timeout=60 + 10 * args.limit,
                )
    yield replace(case(rounds, memory), complete=True)


def against_peers(rounds: Rounds) -> dict[str, float | str]:
    """Say how the fastest native kernel stands to the fastest peer, if both took part."""
    median = {name: rounds.time(name).median for name, times in rounds.times.items() if times}
    others = {name for name in median if name in peers.NEEDED}
    ours = {name for name in median if not name.startswith("mlx")} - others
    if not others or not ours:
        return {}
    peer, kernel = (min(names, key=median.__getitem__) for names in (others, ours))
    ratio = rounds.ratio(peer, kernel)
    spread = f"{ratio.median:.2f} x as fast ({ratio.low:.2f} to {ratio.high:.2f})"
    return {
        "peer_over_kernel": ratio.median,
        "text": f"{kernel} is {spread} as {peer}, the fastest peer.",
    }


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
                if predicted[name] < SURELY_QUICK:
                    # A probe is too small to tell what a device does that waits for work.
                    predicted[name] = _time(work[name])
                continue
            reason = f"about {predicted.pop(name):.0f} s a call, more than --limit"
        skipped.append(Entry(contestant=name, skipped=reason))
    return work, skipped, predicted


def _repeats(seconds: float) -> int:
    return max(1, min(MAX_REPEATS, round(LEAST / seconds))) if seconds else 1


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


def _time(work: Callable[[], object]) -> float:
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
