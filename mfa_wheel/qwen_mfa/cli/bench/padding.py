"""Measure what padded text costs: masked, against its keys removed, for MLX and for our dispatch.

Joint attention of Qwen-Image, text first; the text's tail is padding. Random bfloat16 inputs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.cli.bench.common import Progress
from qwen_mfa.cli.bench.rounds import Spread, interleave
from qwen_mfa.cli.sample import DTYPES
from qwen_mfa.cli.table import seconds, table
from qwen_mfa.kernels import mlx
from qwen_mfa.kernels.base import Call
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


HEAD_DIM = 128


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    counts = (
        ("--image-tokens", 1024, "image tokens (1024: a 512 x 512 picture)"),
        ("--text-tokens", 512, "text tokens, padding included"),
        ("--real", 100, "text tokens that are not padding"),
        ("--heads", 24, "attention heads"),
        ("--rounds", 5, "measured rounds"),
    )
    for name, default, text in counts:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{text}; {default}")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Exit status 2 for numbers that make no sense."""
    if min(args.image_tokens, args.heads, args.rounds) < 1 or not 0 <= args.real <= (
        args.text_tokens
    ):
        print("qwen-mfa bench padding: give positive numbers, and --real <= --text-tokens")
        return 2
    report = measure(args)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time the four ways in interleaved rounds."""
    call = make_call(args)
    parts = padding.visible_parts(call, min_flops=0)
    if parts is None:  # fewer queries than padding.MIN_QUERIES, or switched off
        parts = ()
    ways: dict[str, Callable[[], object]] = {
        "MLX, masked": lambda: mx.eval(mlx.run(call)),
        "qwen-mfa, masked": lambda: _masked(call),
    }
    if parts:
        ways["MLX, removed"] = lambda: mx.eval(padding.attend(parts, call, mlx.run))
        ways["qwen-mfa, removed"] = lambda: mx.eval(padding.attend(parts, call, _ours))
    progress = Progress()
    rounds = interleave(
        ways,
        rounds=args.rounds,
        on_round=lambda n, _: progress(n / args.rounds, f"round {n} of {args.rounds}"),
    )
    progress.clear()
    gains = {
        who: asdict(rounds.ratio(f"{who}, masked", f"{who}, removed"))
        for who in ("MLX", "qwen-mfa")
        if parts
    }
    return {
        "heads": args.heads,
        "head_dim": HEAD_DIM,
        "dtype": args.dtype,
        "keys": call.problem.seq_kv,
        "padded": args.text_tokens - args.real,
        "seconds": {name: asdict(rounds.time(name)) for name in ways},
        "masked_over_removed": gains,
    }


def make_call(args: argparse.Namespace) -> Call:
    """Draw the inputs, laid out as hosts have them: BSHD memory seen as BHSD."""
    tokens = args.text_tokens + args.image_tokens
    dtype = DTYPES[args.dtype]
    q, k, v = (
        mx.random.normal((1, tokens, args.heads, HEAD_DIM), key=key)
        .astype(dtype)
        .transpose(0, 2, 1, 3)
        for key in mx.random.split(mx.random.key(7), 3)
    )
    position = mx.arange(tokens)
    visible = (position < args.real) | (position >= args.text_tokens)
    call = Call(q=q, k=k, v=v, scale=HEAD_DIM**-0.5, mask=visible[None, None, None])
    mx.eval(call.arrays())
    return call


def as_text(report: dict[str, Any]) -> str:
    """Lay the report out as a table."""
    rows = []
    for name, spread in report["seconds"].items():
        who, _, how = name.partition(", ")
        gain = report["masked_over_removed"].get(who) if how == "removed" else None
        rows.append([name, seconds(spread["median"]), _ratio(gain)])
    share = report["padded"] / report["keys"]
    title = (
        f"B 1, H {report['heads']}, D {report['head_dim']}, {report['dtype']}, {report['keys']} "
        f"joint tokens, of which {report['padded']} padded text ({share:.0%})"
    )
    return f"{title}\n\n{table(['', 'median', 'masked / removed'], rows)}"


def _ratio(gain: dict[str, float] | None) -> str:
    if gain is None:
        return ""
    spread = Spread(**gain)
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _ours(call: Call) -> mx.array:
    return scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale, mask=call.mask)


def _masked(call: Call) -> None:
    with padding.kept():
        mx.eval(_ours(call))
