"""Run Qwen-Image's joint attention here, and compare it with float64 and with MLX.

The native kernel is run itself, where there is one; "chosen" is what dispatch would run.

Inputs are random; the shape is one 384 x 384 image (576 tokens) with 100 text tokens, 24 heads of
128. Every row is compared with float64, on larger ones as many as take as long. Exit status 0 when
everything agrees, 1 when anything does not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from qwen_mfa.cli import device, info, selftest_metal
from qwen_mfa.cli.arguments import UsageError, whole
from qwen_mfa.cli.sample import (
    DTYPES,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    TEXT_TOKENS,
    Request,
    Sample,
    draw,
    take_in_child,
)
from qwen_mfa.cli.table import mebibytes, seconds, table
from qwen_mfa.kernels import mlx, registry
from qwen_mfa.problem import describe
from qwen_mfa.selection import choose
from qwen_mfa.validation.reference import distance, exp_float64, largest

if TYPE_CHECKING:
    import argparse

    from qwen_mfa.kernels.base import Kernel
    from qwen_mfa.problem import Problem

IMAGE_TOKENS = 576
# Rows times keys that are compared with float64: MLX takes some 2 s a dtype for every 500,000.
MAX_SCORES = 1200**2
# Other rows are compared with MLX's result, whose own error there is not known: in float16 on a
# CPU, four times what it was elsewhere was seen. Rows that are wrong differ by far more.
MLX_MARGIN = 32

# Largest error allowed against float64 computed from the same (already rounded) inputs, as a
# multiple of the largest value of the result: half a unit in the last place of a 16-bit result
# (2^-9, 2^-12 of the value) with a factor 2 to spare for the arithmetic before it, and for float32
# what 1124 additions in FP32 lose in practice (about 2^-20) with a factor 4.
BOUNDS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-18}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Errors are absolute, times in seconds, memory in bytes.

    ``error`` and ``error_mlx`` are of the rows that are compared with float64, ``rows`` in number;
    ``difference`` is between all of our result and MLX's.
    """

    dtype: str
    mask: str
    kernel: str
    chosen: str
    ours: Sample
    mlx: Sample
    allowed: float
    rows: int
    error: float | None = None
    error_mlx: float | None = None
    difference: float | None = None
    agrees: bool = False


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--image-tokens",
        type=whole(0, 16384),
        default=IMAGE_TOKENS,
        metavar="N",
        help=f"image tokens (default {IMAGE_TOKENS}: a 384 x 384 image)",
    )
    selftest_metal.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell whether everything agrees."""
    if args.metal:
        return selftest_metal.run(args)
    if args.quick or args.report is not None:
        msg = f"{'--quick' if args.quick else '--report'} belongs to --metal: add it"
        raise UsageError(msg)
    facts = info.gather()
    if not args.json:
        print(info.as_text(facts), end="\n\n", flush=True)
    rows = []
    for number, dtype in enumerate(DTYPES):
        exact: Exact | None = None
        for masked in (False, True):
            at = f"[{2 * number + masked + 1}/{2 * len(DTYPES)}] {dtype}"
            _progress(f"{at}, {'padding mask' if masked else 'no mask'}")
            exact = exact or reference(dtype, image_tokens=args.image_tokens)
            rows.append(measure(dtype, exact, masked=masked, image_tokens=args.image_tokens))
    _progress("")
    usable = facts["library"]["state"] != "unusable"
    passed = usable and all(row.agrees for row in rows)
    if args.json:
        print(json.dumps({"passed": passed, **facts, "rows": [asdict(row) for row in rows]}))
    else:
        print(as_text(rows, args.image_tokens))
        print(_result(rows, facts, passed=passed))
    return 0 if passed else 1


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Some rows of every head in float64, ``[1, H, R, D]``.

    Attributes:
        rows: Which.
        without: Of their values without the padded keys, ``True``, and with all, ``False``.

    """

    rows: list[int]
    without: dict[bool, mx.array]


def reference(dtype: str, *, image_tokens: int) -> Exact:
    """Compute attention in float64 of the inputs that both masks share.

    Once for both, head by head: products in float64 are what takes time on a CPU, and no other
    device of MLX's has them.
    """
    call = draw(dtype, masked=False, image_tokens=image_tokens)
    rows = _rows(call.q.shape[2])
    results: dict[bool, list[mx.array]] = {False: [], True: []}
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        for head in range(HEADS):
            q, k, v = (x[0, head].astype(mx.float64) for x in (call.q, call.k, call.v))
            scores = (q[mx.array(rows)] * call.scale) @ k.swapaxes(0, 1)
            weights = exp_float64(scores - scores.max(axis=-1, keepdims=True))
            hidden, hidden_v = weights[:, HIDDEN], v[HIDDEN]
            total, out = weights.sum(axis=-1, keepdims=True), weights @ v
            results[False].append(out / total)
            total -= hidden.sum(axis=-1, keepdims=True)
            results[True].append((out - hidden @ hidden_v) / total)
            mx.eval(results[False][-1], results[True][-1])
        both = {masked: mx.stack(heads)[None] for masked, heads in results.items()}
        mx.eval(*both.values())
    return Exact(rows=rows, without=both)


def measure(dtype: str, known: Exact, *, masked: bool, image_tokens: int) -> Row:
    """Measure one dtype with or without the text-padding mask."""
    call = draw(dtype, masked=masked, image_tokens=image_tokens)
    rows, exact = known.rows, known.without[masked]
    problem = cast("Problem", describe(call.q, call.k, call.v, call.mask))
    chosen = choose.choose(problem).kernel
    native = _native(problem)
    kernel, ours = (chosen, "qwen-mfa") if native is None else (native, native.name)
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-") as folder:
        samples: dict[str, Sample] = {}
        results: dict[str, mx.array] = {}
        for name in (ours, "mlx"):
            output = Path(folder) / f"{name}.safetensors"
            samples[name] = take_in_child(
                Request(
                    kernel=name,
                    dtype=dtype,
                    masked=masked,
                    image_tokens=image_tokens,
                    output=str(output),
                )
            )
            if samples[name].failure is None:
                results[name] = cast("dict[str, mx.array]", mx.load(str(output)))["out"]
                mx.eval(results[name])
    row = Row(
        dtype=dtype,
        mask="padding" if masked else "none",
        kernel=kernel.name,
        chosen=chosen.name,
        ours=samples[ours],
        mlx=samples["mlx"],
        allowed=BOUNDS[dtype] * largest(exact),
        rows=len(rows),
    )
    if len(results) < len(samples):
        return row
    error, error_mlx = (
        distance(results[name][:, :, mx.array(rows)], exact) for name in (ours, "mlx")
    )
    difference = distance(results[ours], results["mlx"])
    # MLX's own 16-bit result may be the less exact one; where it runs, it is the standard.
    allowed = max(row.allowed, error_mlx if kernel is mlx else 0.0)
    return replace(
        row,
        error=error,
        error_mlx=error_mlx,
        difference=difference,
        agrees=error <= allowed
        and (
            len(rows) == call.q.shape[2]
            or difference <= allowed + MLX_MARGIN * max(error_mlx, row.allowed)
        ),
    )


def _rows(number: int) -> list[int]:
    """Return which rows of ``number`` are compared with float64: all, or the ends and between."""
    count = min(number, MAX_SCORES // number)
    return sorted({round(i * (number - 1) / max(1, count - 1)) for i in range(count)})


def _native(problem: Problem) -> Kernel | None:
    """Return the native kernel of the wheel, if it has one that takes ``problem``."""
    return next(
        (x for x in registry.others() if x.needs_child_validation and x.refuses(problem) is None),
        None,
    )


def as_text(rows: list[Row], image_tokens: int) -> str:
    """Lay the rows out as a table."""
    title = (
        f"Joint attention of Qwen-Image: B 1, H {HEADS}, D {HEAD_DIM}, "
        f"{image_tokens} image + {TEXT_TOKENS} text tokens"
    )
    header = [
        *("dtype", "mask", "kernel", "error", "MLX's error", "from MLX's"),
        *("time", "MLX's time", "ratio", "peak", "MLX's peak", "chosen", ""),
    ]
    memory = "what MLX allocated" if device.is_gpu() else "resident memory"
    compared, tokens = min(row.rows for row in rows), image_tokens + TEXT_TOKENS
    which = "all rows" if compared == tokens else f"{compared} of {tokens} rows"
    note = (
        f"error: largest absolute difference from float64, {which} of every head. from MLX's: the "
        f"largest difference\nfrom MLX's result. peak: growth of {memory} during one call, result "
        "included."
    )
    if all(row.mlx.peak is None for row in rows):
        note += " Not known here: this system forgets no earlier peak."
    return f"{title}\n\n{table(header, [_cells(row) for row in rows])}\n\n{note}"


def _cells(row: Row) -> list[str]:
    errors = (row.error, row.error_mlx, row.difference)
    ours, mlx = row.ours, row.mlx
    failed = [f"{name}: {s.failure}" for name, s in (("ours", ours), ("MLX", mlx)) if s.failure]
    result = "agrees" if row.agrees else f"WRONG (> {row.allowed:.1e})"
    return [
        *(row.dtype, row.mask, row.kernel),
        *("-" if value is None else f"{value:.1e}" for value in errors),
        *(seconds(ours.seconds), seconds(mlx.seconds), f"{mlx.seconds / ours.seconds:.1f} x"),
        *(mebibytes(ours.peak), mebibytes(mlx.peak), row.chosen),
        f"FAILED ({'; '.join(failed)})" if failed else result,
    ]


def _result(rows: list[Row], facts: dict[str, Any], *, passed: bool) -> str:
    if passed:
        return "All results agree."
    if facts["library"]["state"] == "unusable":
        return f"FAILED: the library cannot be used. {facts['library']['reason']}"
    bad = sum(not row.agrees for row in rows)
    return (
        f"FAILED: {bad} of {len(rows)} lines disagree. Please report this output{info.report_to()}."
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
