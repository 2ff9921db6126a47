"""Validates a kernel for one variant, against float64, with bounds that are derived.

What is looked for are the failures that attention kernels really have: only some heads computed,
a mask scaled, inverted or misaligned, offsets taken from the wrong length, results of an earlier
call, rows left out, writes beside the output or into the inputs. Every element of every row that is
looked at must keep its own bound; an average would hide a wrong head among many.

The bound of an element, for a kernel that keeps its intermediates with unit roundoff ``u`` and sums
in FP32 (``e = 2^-24``), with ``n`` terms in a sum growing errors by ``2 sqrt(n)`` (Higham and Mary,
"A new approach to probabilistic rounding error analysis", 2019):

    score error   d = size (3 u + 2 (sqrt(D) + 2) e)       size: largest scale |q| |k| + |bias|
    |out - exact|   <= (2 d + 8 u + 2 (sqrt(Skv) + 4) e) weights |v| + r |exact| + t

where ``r`` is the roundoff of the output's dtype and ``t`` its smallest step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa.native.buffers import guard_zones
from qwen_mfa.problem import Problem
from qwen_mfa.transforms.autodiff import misfit
from qwen_mfa.validation.inputs import Drawn, Layout, draw
from qwen_mfa.validation.reference import attention_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_mfa.kernels.base import Call, Kernel
    from qwen_mfa.validation.variants import Variant

_SUMS = 2.0**-24
_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_STEP = {"float32": 2.0**-149, "float16": 2.0**-25, "bfloat16": 2.0**-133}
# Where all rows cost too much, these and the last ones are checked.
_ALL_ROWS = 96
_SOME_ROWS = (0, 1, 5, 6, 15, 16, 63, 64, 127, 128, 255, 256, 511, 512)
_SAME = 2  # heads of keys and entries of a batch: enough to see a wrong offset


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationResult:
    """What a validation found.

    Attributes:
        ok: Whether everything held.
        reason: What did not, in words; empty when all is well.
        error: Largest error against float64, absolute (values are of size 1).
        margin: Largest error as a fraction of its bound.
        seconds: What the validation took.
        died: Whether the kernel ended the process of its validation.
        lasting: Whether another try would find the same.
        outside: Whether something else than the kernel ended its validation.

    """

    ok: bool
    reason: str = ""
    error: float = 0.0
    margin: float = 0.0
    seconds: float = 0.0
    died: bool = False
    lasting: bool = True
    outside: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    title: str
    seq_q: int
    seq_kv: int
    layout: Layout = "dense"
    seed: int = 1
    magnitude: float = 2.0
    scale: float = 1.0  # times D ** -0.5
    mask_dtype: mx.Dtype | None = None
    batch: int = _SAME


def validate(kernel: Kernel, variant: Variant) -> ValidationResult:
    """Run ``kernel`` on small and on long problems of ``variant``. Never raises."""
    start = time.perf_counter()
    error = margin = 0.0
    for case in _cases(variant):
        problem = _problem(variant, case)
        drawn = draw(
            problem,
            layout=case.layout,
            seed=case.seed,
            magnitude=case.magnitude,
            scale=case.scale * variant.head_dim**-0.5,
            mask_dtype=case.mask_dtype,
        )
        refusal = kernel.refuses(problem)
        if refusal is not None:
            flaw: str | None = f"it refuses a problem of the variant: {refusal}"
        else:
            try:
                flaw, worst, share = _examine(kernel, problem, drawn)
            except Exception as failure:  # noqa: BLE001 - whatever a kernel does is a result
                flaw, worst, share = f"{type(failure).__name__}: {failure}", 0.0, 0.0
            error, margin = max(error, worst), max(margin, share)
        if flaw is not None:
            reason = f"{case.title} ({problem}): {flaw}"
            return ValidationResult(
                ok=False, reason=reason, error=error, margin=margin, seconds=_since(start)
            )
    return ValidationResult(ok=True, error=error, margin=margin, seconds=_since(start))


def _cases(variant: Variant) -> Iterator[_Case]:
    long = min(53, variant.length - 3)
    small = _lengths(variant.relation, long, long * 2 // 3)
    masks: tuple[mx.Dtype | None, ...] = (None, None, None)
    if variant.mask == "additive" and variant.dtype == "float32":
        masks = (None, mx.float16, mx.bfloat16)  # all that MLX promotes to float32
    yield _Case(title="first call", seq_q=small[0], seq_kv=small[1])
    yield _Case(title="second call", seq_q=small[0], seq_kv=small[1], seed=2, scale=0.7)
    yield _Case(title="first call again", seq_q=small[0], seq_kv=small[1])
    yield _Case(
        title="heads interleaved in memory",
        seq_q=small[0], seq_kv=small[1], layout="interleaved", seed=3, mask_dtype=masks[1],
    )  # fmt: skip
    yield _Case(
        title="gaps between rows",
        seq_q=small[0], seq_kv=small[1], layout="sliced", seed=4, mask_dtype=masks[2],
    )  # fmt: skip
    # Kernels load elements in pairs, or more at once.
    yield _Case(
        title="rows at odd elements",
        seq_q=small[0], seq_kv=small[1], layout="odd starts", seed=9, mask_dtype=masks[1],
    )  # fmt: skip
    yield _Case(
        title="odd steps between rows",
        seq_q=small[0], seq_kv=small[1], layout="odd rows", seed=10, mask_dtype=masks[2],
    )  # fmt: skip
    yield _Case(
        title="large scores", seq_q=small[0], seq_kv=small[1], seed=5, magnitude=24.0
    )  # fmt: skip
    if variant.relation != "=":
        sq, skv = _lengths(variant.relation, long, 1)
        yield _Case(title="one row against many", seq_q=sq, seq_kv=skv, seed=6)
    at_length = variant.length // 2 + 5
    if at_length > long:
        sq, skv = _lengths(variant.relation, at_length, at_length * 2 // 3)
        for seed in (7, 8):  # twice: some kernels err on the first call of a length
            yield _Case(
                title="at length", seq_q=sq, seq_kv=skv, seed=seed, layout="interleaved", batch=1
            )


def _lengths(relation: str, long: int, short: int) -> tuple[int, int]:
    return {"=": (long, long), "<": (short, long), ">": (long, short)}[relation]


def _problem(variant: Variant, case: _Case) -> Problem:
    heads = _SAME * variant.group
    full = dict(zip("BHQK", (case.batch, heads, case.seq_q, case.seq_kv), strict=True))
    is_array = variant.mask in {"bool", "additive"}
    shape = tuple(full[x] if x in variant.mask_axes else 1 for x in "BHQK") if is_array else ()
    return Problem(
        batch=case.batch,
        heads_q=heads,
        heads_kv=_SAME,
        seq_q=case.seq_q,
        seq_kv=case.seq_kv,
        head_dim=variant.head_dim,
        value_dim=variant.value_dim,
        dtype=variant.dtype,
        mask=variant.mask,
        mask_shape=shape,
        sinks=variant.sinks,
    )


def _examine(kernel: Kernel, problem: Problem, drawn: Drawn) -> tuple[str | None, float, float]:
    """Run one case; return what is wrong, the largest error, and its share of the bound."""
    before = drawn.digest()
    with guard_zones() as guards:
        out = kernel.run(drawn.call)
        mx.eval(out)
        intact = guards.intact()
    flaw = misfit(problem, out)
    if flaw is None and not intact:
        flaw = "it writes outside its output"
    if flaw is None and drawn.digest() != before:
        flaw = "it changes its inputs"
    if flaw is not None:
        return flaw, 0.0, 0.0
    return _compare(out, drawn.call, kernel.roundoff, problem)


def _compare(
    out: mx.array, call: Call, roundoff: float, problem: Problem
) -> tuple[str | None, float, float]:
    rows = _rows(problem.seq_q)
    exact = attention_rows(call, rows)
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        got = out[:, :, mx.array(rows)].astype(mx.float64)
        sums = (sqrt(problem.head_dim) + 2, sqrt(problem.seq_kv) + 4)
        score = exact.size * (3 * roundoff + 2 * sums[0] * _SUMS)
        allowed = (2 * score + 8 * roundoff + 2 * sums[1] * _SUMS) * exact.spread
        allowed = allowed + _ROUNDOFF[problem.dtype] * mx.abs(exact.value) + _STEP[problem.dtype]
        error = mx.abs(got - exact.value)
        # NaN compares as false with everything: it is the largest error there is.
        error = mx.where(mx.isnan(error), mx.inf, error)
        share = error / allowed
        most = int(share.argmax().item().real)
        worst, margin = float(error.max().item().real), float(share.max().item().real)
        if margin <= 1:
            return None, worst, margin
        wrong = (share > 1).any(axis=-1)
        heads = int(wrong.any(axis=-1).sum().item().real)
        lost = int(wrong.sum().item().real)
        at = float(error.reshape(-1)[most].item().real)
        bound = float(allowed.reshape(-1)[most].item().real)
    _, head, row, _ = _unravel(most, share.shape)
    text = (
        f"{lost} of {problem.batch * problem.heads_q * len(rows)} rows are wrong, in {heads} of "
        f"{problem.batch * problem.heads_q} heads; at head {head}, row {rows[row]} the error is "
        f"{at:.1e}, allowed is {bound:.1e}"
    )
    return text, worst, margin


def _rows(count: int) -> list[int]:
    if count <= _ALL_ROWS:
        return list(range(count))
    some = {row for row in _SOME_ROWS if row < count}
    return sorted(some | {count // 2, count // 3, count - 17, count - 2, count - 1})


def _unravel(index: int, shape: tuple[int, ...]) -> list[int]:
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index //= size
    return places[::-1]


def _since(start: float) -> float:
    return time.perf_counter() - start
