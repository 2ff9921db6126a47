"""A step of Qwen-Image at its real width: mflux's own where it is installed, else our blocks.

With mflux: both passes, guidance and scheduler, mflux alone against the integration and against
each of its parts switched off (see `qwen_mfa.cli.bench.pipeline`). Without:

Some of the 60 blocks (24 heads of 128, width 3072), with random weights. The step and its attention
alone are timed in interleaved rounds, with MLX's attention and with what dispatch chooses. From
that, the gain for all 60 blocks is projected by Amdahl's law; it is a projection, and said to be.
Sizes: qwen-512, qwen-1024, qwen-1328, qwen-2048, or SIDE,TEXT for SIDE x SIDE image tokens and
TEXT text tokens (default 8,20).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import mlx.core as mx

import qwen_mfa
from qwen_mfa.cli import device, info
from qwen_mfa.cli.bench import footprint, freed, pipeline, shapes
from qwen_mfa.cli.bench.common import Progress, add_outputs, collect, count
from qwen_mfa.cli.bench.records import Case, Entry, Report
from qwen_mfa.cli.bench.rounds import Rounds, Spread, interleaved
from qwen_mfa.cli.sample import DTYPES, TEXT_TOKENS
from qwen_mfa.cli.table import seconds
from qwen_mfa.problem import describe
from qwen_mfa.qwen_image import TransformerBlock, rope_tables
from qwen_mfa.selection import choose
from qwen_mfa.selection.override import use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL_BLOCKS = 60
WIDTH, HEADS, HEAD_DIM = 3072, 24, 128
MLX, CHOSEN = "mlx", "dispatch"
AGAIN = "step mlx, again"


@dataclass(frozen=True, kw_only=True)
class Size:
    """``side`` x ``side`` image tokens and ``text`` text tokens."""

    name: str
    side: int
    text: int

    @property
    def tokens(self) -> int:
        """Of image and text together."""
        return self.side * self.side + self.text


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What follows from the times.

    Attributes:
        share: Attention's part of the step with MLX's attention.
        attention_gain: time(MLX's attention) / time(chosen attention).
        step_gain: The same for the whole step, measured.
        projected_gain: The same for 60 blocks, by Amdahl's law from share and attention_gain.
        projected_step: Seconds a step of 60 blocks takes with the chosen kernel: a projection.

    """

    share: float
    attention_gain: float
    step_gain: float
    projected_gain: float
    projected_step: float


def parse(text: str) -> Size:
    """Read a name of `shapes.NAMED`, or ``SIDE,TEXT``."""
    if text in shapes.NAMED:
        side = round((shapes.NAMED[text].seq_q - TEXT_TOKENS) ** 0.5)
        return Size(name=text, side=side, text=TEXT_TOKENS)
    try:
        side, words = (int(part) for part in text.split(","))
    except ValueError:
        side = words = 0
    if min(side, words) < 1:
        msg = f"{text!r} is neither one of {', '.join(shapes.NAMED)} nor two numbers SIDE,TEXT"
        raise argparse.ArgumentTypeError(msg)
    return Size(name=text, side=side, text=words)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("sizes", nargs="*", type=parse, metavar="SIZE")
    parser.add_argument("--blocks", type=count, default=1, metavar="N", help="of 60 (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=count, default=3, help="measured rounds (default 3)")
    parser.add_argument(
        "--modules",
        choices=("auto", "mflux", "own"),
        default="auto",
        help="mflux's own step where mflux is installed, or this package's blocks (default: auto)",
    )
    parser.add_argument(
        "--bits", type=int, choices=(0, 4, 8), default=0, help="quantise mflux's weights"
    )
    parser.add_argument(
        "--ways",
        type=pipeline.names,
        default=list(pipeline.WAYS),
        metavar="NAMES",
        help=f"of mflux's step, separated by semicolons: {'; '.join(pipeline.WAYS)}",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    sizes = args.sizes or [parse("8,20")]
    progress = Progress()
    with_mflux = args.modules == "mflux" or (args.modules == "auto" and pipeline.available())

    def cases() -> Iterator[Case]:
        if with_mflux:
            yield from _cases_of_mflux(sizes, args, progress)
            return
        for number, size in enumerate(sizes):

            def show(done: float, detail: str, number: int = number, name: str = size.name) -> None:
                progress((number + done) / len(sizes), f"{name}: {detail}")

            yield from measure(size, args, progress=show)

    collect(Report(bench="step", machine=info.gather()), cases(), args, progress)
    return 0


def _cases_of_mflux(
    sizes: list[Size], args: argparse.Namespace, progress: Progress
) -> Iterator[Case]:
    letting_go = [name for name in args.ways if name in pipeline.FREED]
    total = len(sizes) * (1 + len(letting_go))
    progress(0, "drawing weights")
    model = pipeline.draw(args.blocks, args.bits)
    for number, size in enumerate(sizes):

        def show(done: float, detail: str, number: int = number, name: str = size.name) -> None:
            progress((number + done) / total, f"{name}: {detail}")

        yield from pipeline.measure(size, model, args, show)
    del model
    mx.clear_cache()  # for the processes that draw their own
    for number, (size, name) in enumerate(product(sizes, letting_go), len(sizes)):
        progress(number / total, f"{size.name}: {name}")
        yield freed.measure(size, name, args)


def measure(
    size: Size, args: argparse.Namespace, *, progress: Callable[[float, str], None]
) -> Iterator[Case]:
    """Measure a step of ``args.blocks`` blocks; give what there is after every round."""
    blocks: int = args.blocks
    call = shapes.draw(_attention_shape(size), args.dtype, "none")
    problem = describe(call.q, call.k, call.v)
    if problem is None:  # pragma: no cover - the shape is ours
        msg = "the step's attention cannot be described"
        raise AssertionError(msg)
    progress(0, "choosing a kernel")
    kernel = choose.choose(problem).kernel.name
    progress(0, "drawing weights")
    step = _step(size, blocks=blocks, dtype=args.dtype)

    def attention() -> None:
        for _ in range(blocks):
            mx.eval(qwen_mfa.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale))

    work = {
        f"step {MLX}": _with(MLX, step),
        f"step {CHOSEN}": _with("auto", step),
        AGAIN: _with(MLX, step),
        f"attention {MLX}": _with(MLX, attention),
        f"attention {CHOSEN}": _with("auto", attention),
    }
    base = Case(
        shape=f"{blocks} of Qwen-Image's {ALL_BLOCKS} blocks, random weights, {size.name}",
        sizes={"blocks": blocks, "width": WIDTH, "Sq": size.tokens, "text": size.text},
        dtype=args.dtype,
        mask="none",
        complete=False,
    )
    peaks: list[float] = []
    rounds = Rounds(times={})
    progress(0, "warming up")
    for number, rounds in enumerate(interleaved(work, rounds=args.rounds), 1):
        progress(number / (args.rounds + 1), f"round {number} of {args.rounds}")
        peak = device.peak_rate(args.dtype)
        if peak:
            peaks.append(peak)
        yield _filled(base, rounds, peaks, kernel, {})
    memory = {} if args.no_memory else _memory(size, args, progress)
    yield replace(_filled(base, rounds, peaks, kernel, memory), complete=True)


def prepared(arguments: dict[str, Any]) -> Callable[[], object]:
    """Return one step, for `footprint`: with weights drawn, kernels chosen and a step done."""
    size = Size(**arguments["size"])
    step = _step(size, blocks=arguments["blocks"], dtype=arguments["dtype"])
    work = _with(arguments["backend"], step)
    work()
    return work


def _memory(
    size: Size, args: argparse.Namespace, progress: Callable[[float, str], None]
) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name, backend in ((f"step {MLX}", MLX), (f"step {CHOSEN}", "auto")):
        progress(args.rounds / (args.rounds + 1), f"memory of {name}")
        found[name] = footprint.measure(
            "qwen_mfa.cli.bench.step",
            {
                "size": asdict(size),
                "blocks": args.blocks,
                "dtype": args.dtype,
                "backend": backend,
            },
            timeout=3600,
        )
    return found


def _filled(
    base: Case,
    rounds: Rounds,
    peaks: list[float],
    kernel: str,
    memory: dict[str, int | None],
) -> Case:
    blocks, tokens = base.sizes["blocks"], base.sizes["Sq"]
    attention_flops = 4 * blocks * HEADS * tokens * tokens * HEAD_DIM
    # Per token: q, k, v and output (4 times the width squared), feed-forward (8 times).
    flops = {
        "step": attention_flops + 2 * 12 * blocks * tokens * WIDTH * WIDTH,
        "attention": attention_flops,
    }
    peak = Spread.of(peaks).median if peaks else None
    entries = []
    for what, operations in flops.items():
        for who in (MLX, CHOSEN):
            name = f"{what} {who}"
            rate = operations / rounds.time(name).median
            entries.append(
                Entry(
                    contestant=name if who == MLX else f"{name} ({kernel})",
                    rounds=len(rounds.times[name]),
                    seconds=rounds.time(name),
                    gflops=rate / 1e9,
                    of_peak=rate / peak if peak else None,
                    gain=rounds.ratio(f"{what} {MLX}", name),
                    memory=memory.get(name),
                )
            )
    projection = project(rounds, blocks=blocks)
    return replace(
        base,
        peak_gflops=peak and peak / 1e9,
        peak_means=device.peak_means(),
        noise=rounds.ratio(f"step {MLX}", AGAIN),
        entries=tuple(entries),
        conclusions={**asdict(projection), "text": sentence(projection)},
    )


def project(found: Rounds, *, blocks: int) -> Projection:
    """Return what follows from the times of ``blocks`` blocks and as many attentions."""
    share = found.ratio(f"attention {MLX}", f"step {MLX}").median
    gain = found.ratio(f"attention {MLX}", f"attention {CHOSEN}").median
    # Amdahl's law: the rest of the step is as slow as it was.
    projected = 1 / (1 - min(share, 1.0) + min(share, 1.0) / gain)
    step_mlx = found.time(f"step {MLX}").median
    return Projection(
        share=share,
        attention_gain=gain,
        step_gain=found.ratio(f"step {MLX}", f"step {CHOSEN}").median,
        projected_gain=projected,
        projected_step=step_mlx / blocks * ALL_BLOCKS / projected,
    )


def sentence(projection: Projection) -> str:
    """Say what follows from the times, and that it is no measurement."""
    return (
        f"Attention is {projection.share:.0%} of a step with MLX's kernels. Projected by Amdahl's "
        f"law (not measured): {ALL_BLOCKS} blocks {projection.projected_gain:.2f} x as fast, "
        f"{seconds(projection.projected_step)} a step."
    )


def _attention_shape(size: Size) -> shapes.Shape:
    return shapes.Shape(
        name=size.name,
        batch=1,
        heads=HEADS,
        seq_q=size.tokens,
        seq_kv=size.tokens,
        head_dim=HEAD_DIM,
    )


def _step(size: Size, *, blocks: int, dtype: str) -> Callable[[], None]:
    kind = DTYPES[dtype]
    layers = [TransformerBlock(dim=WIDTH, heads=HEADS, head_dim=HEAD_DIM) for _ in range(blocks)]
    for layer in layers:
        layer.set_dtype(kind)
        mx.eval(layer.parameters())  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
    tables = rope_tables([(1, size.side, size.side)], size.text)
    keys = mx.random.split(mx.random.key(3), 3)
    image = mx.random.normal((1, size.side * size.side, WIDTH), key=keys[0]).astype(kind)
    words = mx.random.normal((1, size.text, WIDTH), key=keys[1]).astype(kind)
    time = mx.random.normal((1, WIDTH), key=keys[2]).astype(kind)
    mx.eval(image, words, time)

    def run() -> None:
        a, b = image, words
        for layer in layers:
            a, b = layer(a, b, time, rope=tables)
        mx.eval(a, b)

    return run


def _with(backend: str, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with use(backend):
            work()

    return run
