"""Run Qwen-Image's joint attention here, and compare it with float64 and with MLX.

Inputs are random; the shape is one 512 x 512 image (1024 tokens) with 100 text tokens, 24 heads of
128. Exit status 0 when everything agrees, 1 when anything does not.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

import qwen_mfa
from qwen_mfa import dispatch
from qwen_mfa.cli import info
from qwen_mfa.cli.table import mebibytes, seconds, table
from qwen_mfa.kernels import Call
from qwen_mfa.kernels import mlx as reference
from qwen_mfa.memory import peak_of
from qwen_mfa.problem import describe
from qwen_mfa.reference import attention_float64

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

HELP = "check the kernel against float64 and MLX on Qwen-Image's attention"

HEADS, HEAD_DIM = 24, 128
IMAGE_TOKENS, TEXT_TOKENS, PADDED = 1024, 100, 37
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

# Largest error allowed against float64 computed from the same (already rounded) inputs, as a
# multiple of the largest value of the result: half a unit in the last place of a 16-bit result
# (2^-9, 2^-12 of the value) with a factor 2 to spare for the arithmetic before it, and for float32
# what 1124 additions in FP32 lose in practice (about 2^-20) with a factor 4.
BOUNDS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-18}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Errors are absolute, times in seconds, memory in bytes."""

    dtype: str
    mask: str
    kernel: str
    error: float
    error_mlx: float
    difference: float
    allowed: float
    time: float
    time_mlx: float
    memory: int
    memory_mlx: int
    agrees: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--image-tokens",
        type=_tokens,
        default=IMAGE_TOKENS,
        metavar="N",
        help=f"image tokens (default {IMAGE_TOKENS}: a 512 x 512 image)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell whether everything agrees."""
    facts = info.gather()
    if not args.json:
        print(info.as_text(facts), end="\n\n", flush=True)
    cases = [(dtype, masked) for dtype in DTYPES for masked in (False, True)]
    rows, unit = [], ""
    for number, (dtype, masked) in enumerate(cases, 1):
        _progress(f"[{number}/{len(cases)}] {dtype}, {'padding mask' if masked else 'no mask'}")
        row, unit = measure(dtype, masked=masked, image_tokens=args.image_tokens)
        rows.append(row)
    _progress("")
    usable = facts["library"]["state"] != "unusable"
    passed = usable and all(row.agrees for row in rows)
    if args.json:
        report = {"passed": passed, "memory": unit, **facts, "rows": [asdict(row) for row in rows]}
        print(json.dumps(report, indent=2))
    else:
        print(as_text(rows, args.image_tokens, unit))
        print(_verdict(passed=passed, facts=facts))
    return 0 if passed else 1


def measure(dtype: str, *, masked: bool, image_tokens: int) -> tuple[Row, str]:
    """Measure one dtype with or without the text-padding mask."""
    call = make_call(DTYPES[dtype], masked=masked, image_tokens=image_tokens)
    exact = attention_float64(call)
    # A first call opens the library, starts its threads and touches its scratch memory.
    mx.eval(_ours(call))
    ours, ours_memory, unit = peak_of(lambda: _evaluated(_ours(call)))
    theirs, theirs_memory, _ = peak_of(lambda: _evaluated(reference.run(None, call)))
    ours_time = min(_time(lambda: _ours(call)) for _ in range(3))
    theirs_time = _time(lambda: reference.run(None, call))
    error, error_mlx = _largest(ours, exact), _largest(theirs, exact)
    allowed = BOUNDS[dtype] * _scalar(mx.abs(exact).max())
    problem = describe(call.q, call.k, call.v, call.mask)
    kernel = reference if problem is None else dispatch.choose(problem).kernel
    row = Row(
        dtype=dtype,
        mask="padding" if masked else "none",
        kernel=kernel.name,
        error=error,
        error_mlx=error_mlx,
        difference=_largest(ours, theirs),
        allowed=allowed,
        time=ours_time,
        time_mlx=theirs_time,
        memory=ours_memory,
        memory_mlx=theirs_memory,
        # MLX's own 16-bit result may be the less exact one; where it runs, it is the standard.
        agrees=error <= max(allowed, error_mlx if kernel is reference else 0.0),
    )
    return row, unit


def make_call(dtype: mx.Dtype, *, masked: bool, image_tokens: int) -> Call:
    """Draw joint text+image inputs, laid out as hosts have them: BSHD memory seen as BHSD."""
    tokens = TEXT_TOKENS + image_tokens
    keys = mx.random.split(mx.random.key(7), 3)
    q, k, v = (
        mx.random.normal((1, tokens, HEADS, HEAD_DIM), key=key).astype(dtype).transpose(0, 2, 1, 3)
        for key in keys
    )
    # Joint order is text first; the text's tail is padding.
    position = mx.arange(tokens)
    hidden = (position >= TEXT_TOKENS - PADDED) & (position < TEXT_TOKENS)
    mask = mx.logical_not(hidden)[None, None, None, :] if masked else None
    call = Call(q=q, k=k, v=v, scale=HEAD_DIM**-0.5, mask=mask)
    mx.eval(call.arrays())
    return call


def as_text(rows: list[Row], image_tokens: int, unit: str) -> str:
    """Lay the rows out as a table."""
    title = (
        f"Joint attention of Qwen-Image: B 1, H {HEADS}, D {HEAD_DIM}, "
        f"{image_tokens} image + {TEXT_TOKENS} text tokens"
    )
    header = [
        *("dtype", "mask", "kernel", "error", "MLX's error", "ours - MLX"),
        *("time", "MLX", "ratio", "peak", "MLX's peak", ""),
    ]
    body = [
        [
            *(row.dtype, row.mask, row.kernel),
            *(f"{value:.1e}" for value in (row.error, row.error_mlx, row.difference)),
            *(seconds(row.time), seconds(row.time_mlx), f"{row.time_mlx / row.time:.1f} x"),
            *(mebibytes(row.memory), mebibytes(row.memory_mlx)),
            "agrees" if row.agrees else f"WRONG (> {row.allowed:.1e})",
        ]
        for row in rows
    ]
    note = (
        "error: largest absolute difference from a float64 reference. "
        f"peak: growth of {unit} during one call."
    )
    return f"{title}\n\n{table(header, body)}\n\n{note}"


def _verdict(*, passed: bool, facts: dict[str, Any]) -> str:
    if passed:
        return "All results agree."
    if facts["library"]["state"] == "unusable":
        return f"FAILED: the library cannot be used. {facts['library']['reason']}"
    return "FAILED: a result disagrees with float64. Please report this table."


def _ours(call: Call) -> mx.array:
    return qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask
    )


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array


def _time(work: Callable[[], mx.array]) -> float:
    start = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - start


def _largest(a: mx.array, b: mx.array) -> float:
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        difference = mx.abs(a.astype(mx.float64) - b.astype(mx.float64))
        # NaN is the largest error there is.
        return _scalar(mx.where(mx.isnan(difference), mx.inf, difference).max())


def _scalar(array: mx.array) -> float:
    return float(array.item().real)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _tokens(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 16384:
        msg = "give a number from 0 to 16384"
        raise ValueError(msg)
    return value
