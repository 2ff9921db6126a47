"""A transformer step of Qwen-Image's real width: what attention costs of it, what a kernel gains.

Some of the 60 blocks (24 heads of 128, width 3072), with random weights. Two of everything is
timed in interleaved rounds: with MLX's attention, and with what dispatch chooses. From that, the
gain for all 60 blocks is projected by Amdahl's law; it is a projection, and said to be.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

import qwen_mfa
from qwen_mfa import dispatch
from qwen_mfa.cli.bench.common import Progress, count
from qwen_mfa.cli.bench.rounds import Spread, interleave
from qwen_mfa.cli.bench.shapes import Shape, draw
from qwen_mfa.cli.sample import DTYPES
from qwen_mfa.cli.table import seconds, table
from qwen_mfa.policy import use
from qwen_mfa.problem import describe
from qwen_mfa.qwen_image import TransformerBlock, rope_tables

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from qwen_mfa.cli.bench.rounds import Rounds

HELP = "measure a transformer step of Qwen-Image's width, and attention's share of it"
ALL_BLOCKS = 60
WIDTH, HEADS, HEAD_DIM = 3072, 24, 128
MLX, CHOSEN = "mlx", "dispatch"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Times in seconds, of ``blocks`` blocks and of as many attentions.

    Attributes:
        kernel: What dispatch chose.
        share: Attention's part of the step with MLX's attention.
        attention_gain: time(MLX's attention) / time(chosen attention).
        step_gain: The same for the whole step, measured.
        projected_gain: The same for 60 blocks, by Amdahl's law from share and attention_gain.
        projected_step: Seconds a step of 60 blocks takes with the chosen kernel: a projection.

    """

    blocks: int
    tokens: int
    dtype: str
    kernel: str
    step_mlx: Spread
    step: Spread
    attention_mlx: Spread
    attention: Spread
    share: float
    attention_gain: float
    step_gain: Spread
    projected_gain: float
    projected_step: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--image-side", type=count, default=8, metavar="N", help="N x N tokens")
    parser.add_argument("--text-tokens", type=count, default=20, metavar="N")
    parser.add_argument("--blocks", type=count, default=1, metavar="N", help="of 60 (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    result = measure(
        side=args.image_side,
        text=args.text_tokens,
        blocks=args.blocks,
        dtype=args.dtype,
        rounds=args.rounds,
    )
    print(json.dumps(asdict(result), indent=1) if args.json else as_text(result))
    return 0


def measure(*, side: int, text: int, blocks: int, dtype: str, rounds: int) -> Result:
    """Measure ``blocks`` blocks over ``side`` x ``side`` image tokens and ``text`` text tokens."""
    progress = Progress(f"{blocks} block{'s' if blocks > 1 else ''}, {side} x {side} + {text}")
    tokens = side * side + text
    shape = Shape(name="step", batch=1, heads=HEADS, seq_q=tokens, seq_kv=tokens, head_dim=HEAD_DIM)
    call = draw(shape, dtype, "none")
    problem = describe(call.q, call.k, call.v)
    if problem is None:  # pragma: no cover - the shape is ours
        msg = "the step's attention cannot be described"
        raise AssertionError(msg)
    progress("choosing a kernel")
    kernel = dispatch.choose(problem).kernel.name
    step = _step(side=side, text=text, blocks=blocks, dtype=dtype)

    def attention() -> None:
        for _ in range(blocks):
            mx.eval(qwen_mfa.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale))

    progress("warming up")
    found = interleave(
        {
            f"step {MLX}": _with(MLX, step),
            f"step {CHOSEN}": _with("auto", step),
            f"attention {MLX}": _with(MLX, attention),
            f"attention {CHOSEN}": _with("auto", attention),
        },
        rounds=rounds,
        on_round=lambda number, _: progress(f"round {number} of {rounds}"),
    )
    progress("")
    return _result(found, blocks=blocks, tokens=tokens, dtype=dtype, kernel=kernel)


def _result(found: Rounds, *, blocks: int, tokens: int, dtype: str, kernel: str) -> Result:
    share = found.ratio(f"attention {MLX}", f"step {MLX}").median
    gain = found.ratio(f"attention {MLX}", f"attention {CHOSEN}").median
    # Amdahl's law: the rest of the step is as slow as it was.
    projected = 1 / (1 - min(share, 1.0) + min(share, 1.0) / gain)
    step_mlx = found.time(f"step {MLX}")
    return Result(
        blocks=blocks,
        tokens=tokens,
        dtype=dtype,
        kernel=kernel,
        step_mlx=step_mlx,
        step=found.time(f"step {CHOSEN}"),
        attention_mlx=found.time(f"attention {MLX}"),
        attention=found.time(f"attention {CHOSEN}"),
        share=share,
        attention_gain=gain,
        step_gain=found.ratio(f"step {MLX}", f"step {CHOSEN}"),
        projected_gain=projected,
        projected_step=step_mlx.median / blocks * ALL_BLOCKS / projected,
    )


def as_text(result: Result) -> str:
    """Lay the result out as a table and a sentence."""
    title = (
        f"{result.blocks} of Qwen-Image's {ALL_BLOCKS} blocks, random weights, {result.dtype}, "
        f"{result.tokens} tokens; dispatch chose {result.kernel}"
    )
    rows = [
        ["step", seconds(result.step_mlx.median), seconds(result.step.median),
         f"{result.step_gain.median:.2f} x"],
        ["attention in it", seconds(result.attention_mlx.median), seconds(result.attention.median),
         f"{result.attention_gain:.2f} x"],
    ]  # fmt: skip
    return (
        f"{title}\n\n{table(['', 'MLX', 'dispatch', 'gain'], rows)}\n\n"
        f"Attention is {result.share:.0%} of a step with MLX's kernels. Projected by Amdahl's law "
        f"(not measured): {ALL_BLOCKS} blocks {result.projected_gain:.2f} x as fast, "
        f"{seconds(result.projected_step)} a step."
    )


def _step(*, side: int, text: int, blocks: int, dtype: str) -> Callable[[], None]:
    kind = DTYPES[dtype]
    layers = [TransformerBlock(dim=WIDTH, heads=HEADS, head_dim=HEAD_DIM) for _ in range(blocks)]
    for layer in layers:
        layer.set_dtype(kind)
        mx.eval(layer.parameters())  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
    tables = rope_tables([(1, side, side)], text)
    keys = mx.random.split(mx.random.key(3), 3)
    image = mx.random.normal((1, side * side, WIDTH), key=keys[0]).astype(kind)
    words = mx.random.normal((1, text, WIDTH), key=keys[1]).astype(kind)
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
