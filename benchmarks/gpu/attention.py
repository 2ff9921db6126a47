"""MLX's attention and ours where MLX computes on a GPU: with and without masks, and per call.

    python benchmarks/gpu/attention.py [--rounds N] [--json]

For each length: no mask, a bool mask and an additive one of the inputs' dtype, of which 412 of 512
text slots are hidden. Both sides run in turn, and what is printed is the median of paired ratios
(MLX / ours: above 1 is a gain), with its quartiles. Then 60 chained calls of 64 tokens, built
lazily and evaluated once at the end: all of it, and the building alone, which is the host's time;
and what ours adds to each call, the median of paired differences. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

import qwen_mfa
from qwen_mfa.kernels import mlx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADS, DIM = 24, 128
SCALE = DIM**-0.5
SLOTS, USED = 512, 100  # of text
IMAGES = (1024, 4096, 6889)  # tokens at 512, 1024 and 1328 pixels square
CALLS, SHORT = 60, 64
WARM = 5


@dataclass(frozen=True, kw_only=True)
class Line:
    """Seconds of both sides, the quartiles of MLX's time over ours, and of ours less MLX's."""

    title: str
    mlx: float
    ours: float
    ratio: tuple[float, float, float]
    added: tuple[float, float, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of each comparison")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    lines = [line for image in IMAGES for line in masks(image, args.rounds)]
    lines += chained(args.rounds)
    if args.json:
        facts = {"device": str(mx.default_device()), "info": mx.device_info()}
        reasons = {f"{a}: {b}": n for (a, b), n in qwen_mfa.stats().reasons.items()}
        found = [asdict(line) for line in lines]
        print(json.dumps({**facts, "lines": found, "reasons": reasons}, default=str))
        return
    print(f"{mx.default_device()}, {mx.device_info()}")
    for line in lines:
        low, middle, high = line.ratio
        print(
            f"{line.title:<40} MLX {line.mlx * 1e3:8.3f} ms  ours {line.ours * 1e3:8.3f} ms  "
            f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    for line in lines[-2:]:
        low, middle, high = (x / CALLS * 1e6 for x in line.added)
        print(f"added to each call, {line.title}: {middle:.2f} us ({low:.2f} to {high:.2f})")
    for (kernel, reason), number in qwen_mfa.stats().reasons.items():
        print(f"{number:6} x {kernel}: {reason[:120]}")


def masks(image: int, rounds: int) -> list[Line]:
    """Compare without a mask and with both kinds of it."""
    tokens = SLOTS + image
    q, k, v = operands(tokens)
    position = mx.arange(tokens)
    visible = ((position < USED) | (position >= SLOTS))[None, None, None]
    additive = mx.where(visible, 0.0, -1e9).astype(q.dtype)
    lines = []
    for title, mask in {"no mask": None, "bool mask": visible, "additive mask": additive}.items():
        # One each: a mask that ours reads on the host and MLX on the GPU would travel every time.
        theirs, ours = (None if mask is None else mx.array(mask) for _ in range(2))
        mx.eval([x for x in (theirs, ours) if x is not None])
        lines.append(
            compare(
                f"{tokens} tokens, {title}",
                partial(mlx.attention, q, k, v, scale=SCALE, mask=theirs),
                partial(qwen_mfa.scaled_dot_product_attention, q, k, v, scale=SCALE, mask=ours),
                rounds,
            )
        )
    return lines


def chained(rounds: int) -> list[Line]:
    """Compare chains of calls, each of which takes the result before it, evaluated at the end."""
    q, k, v = operands(SHORT)

    def chain(attention: Callable[..., mx.array]) -> mx.array:
        x = q
        for _ in range(CALLS):
            x = attention(x, k, v, scale=SCALE)
        return x

    return [
        compare(
            f"{CALLS} lazy calls, {SHORT} tokens{what}",
            lambda: chain(mlx.attention),
            lambda: chain(qwen_mfa.scaled_dot_product_attention),
            5 * rounds,  # they are short, and what is looked for is small
            built_only=built_only,
        )
        for what, built_only in (("", False), (", built only", True))
    ]


def operands(tokens: int) -> Sequence[mx.array]:
    """Draw q, k and v in bfloat16."""
    shape = (1, HEADS, tokens, DIM)
    keys = mx.random.split(mx.random.key(1), 3)
    drawn = [mx.random.normal(shape, key=key).astype(mx.bfloat16) for key in keys]
    mx.eval(drawn)
    return drawn


def compare(
    title: str,
    theirs: Callable[[], mx.array],
    ours: Callable[[], mx.array],
    rounds: int,
    *,
    built_only: bool = False,
) -> Line:
    """Run both in turn, each pair in the other order, after some that do not count."""
    for _ in range(WARM):
        mx.eval(theirs())
        mx.eval(ours())
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = seconds(ours, built_only=built_only)
            pairs.append((seconds(theirs, built_only=built_only), second))
        else:
            first = seconds(theirs, built_only=built_only)
            pairs.append((first, seconds(ours, built_only=built_only)))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    least, added, most = statistics.quantiles([b - a for a, b in pairs], n=4)
    return Line(
        title=title,
        mlx=statistics.median(a for a, _ in pairs),
        ours=statistics.median(b for _, b in pairs),
        ratio=(low, middle, high),
        added=(least, added, most),
    )


def seconds(work: Callable[[], mx.array], *, built_only: bool = False) -> float:
    """Return the time of one run, its evaluation included unless only building counts."""
    start = time.perf_counter()
    out = work()
    built = time.perf_counter() - start
    mx.eval(out)
    return built if built_only else time.perf_counter() - start


if __name__ == "__main__":
    main()
