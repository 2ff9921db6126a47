"""The miniature's attention kernel, run by software Metal on one case: error and findings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from tests.standins.software_metal import host

ROOT = Path(__file__).parents[2]
KERNEL_TEXT = (
    ROOT / "tests/standins/upstream/sub/Sources/FlashAttention/Attention"
    / "KernelText.swift"
)  # fmt: skip
PLAIN_EVENT = ROOT / "swift_pkg/overlay/Sources/PlainSimdgroupEvent.swift"
LANES, ROWS = 64, 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call. Lengths are no multiples of a block, so that every edge is there."""

    element: str = "bfloat"
    apple9: bool = True
    low: bool = False
    variant: str = "plain"
    batch: int = 2
    heads: int = 2
    length_q: int = 37
    length_kv: int = 29
    head_dim: int = 16
    causal: bool = False
    bias: bool = True
    interleaved: bool = False
    check: bool = False
    schedules: tuple[str, ...] = ("forward",)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case.

    Attributes:
        error: Largest difference from float64; NaN where the kernel wrote NaN or nothing.
        same: Whether every schedule gave the same bits.
        findings: Of the memory checker, each text once.

    """

    error: float
    same: bool
    findings: tuple[str, ...]


def literal(path: Path, name: str) -> str:
    """Return the raw string literal ``name`` of a Swift file."""
    text = path.read_text(encoding="utf-8")
    found = re.search(rf'let {name} = #"""\n(.*?)"""#', text, re.DOTALL)
    assert found is not None, name
    return found[1]


def source(case: Case) -> str:
    """Return the whole Metal source of ``case``."""
    event = (
        literal(PLAIN_EVENT, "plainSimdgroupEvent")
        if case.variant == "plain"
        else literal(KERNEL_TEXT, "eventText")
    )
    defines = {
        "ELEMENT": case.element,
        "SCORE": "half" if case.low and case.element == "half" else "float",
        "APPLE9": int(case.apple9),
        "LOW": int(case.low),
        "D": case.head_dim,
        "SCALE": f"{case.head_dim**-0.5 / np.log(2):.9g}",
    }
    head = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return f"#include <metal_stdlib>\n{event}{head}{literal(KERNEL_TEXT, 'kernelText')}"


def encode(values: np.ndarray[Any, Any], element: str) -> np.ndarray[Any, Any]:
    """Return FP32 ``values`` in the kernel's element type, bfloat as its 16 bits."""
    if element == "half":
        return values.astype(np.float16)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def decode(values: np.ndarray[Any, Any], element: str) -> np.ndarray[Any, Any]:
    """Return elements as float64."""
    if element == "half":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def perform(case: Case, text: str, findings: Path) -> Outcome:
    """Run ``text`` as ``case`` says."""
    program = host.load(text, check=case.check)
    rng = np.random.default_rng(7)
    b, h, d = case.batch, case.heads, case.head_dim

    def tensor(length: int) -> np.ndarray[Any, Any]:
        shape = (b, length, h, d) if case.interleaved else (b, h, length, d)
        made = encode(rng.standard_normal(shape, dtype=np.float32), case.element)
        return made.transpose(0, 2, 1, 3) if case.interleaved else made

    q, k, v = tensor(case.length_q), tensor(case.length_kv), tensor(case.length_kv)
    bias = rng.standard_normal((b, h, case.length_q, case.length_kv), dtype=np.float32)
    exact = _exact(case, q, k, v, bias)
    number = {0: np.uint32(case.length_q), 1: np.uint32(case.length_kv), 4: np.uint8(case.causal)}
    program.set_constants({index: value.tobytes() for index, value in number.items()})
    results = []
    for schedule in case.schedules:
        host.use(schedule)
        out = np.full((b, h, case.length_q, d), np.nan, np.float32)
        sums = np.zeros((b, h, case.length_q), np.float32)
        bindings: dict[int, host.Bound | bytes] = {
            0: host.Bound(array=_memory(q)),
            1: host.Bound(array=_memory(k)),
            2: host.Bound(array=_memory(v)),
            3: host.Bound(array=out, uninitialised=True),
            4: host.Bound(array=sums, uninitialised=True),
            **{5 + i: _strides(x) for i, x in enumerate((q, k, v))},
            8: np.uint32(h).tobytes(),
        }
        if case.bias:
            bindings[12] = host.Bound(array=bias)
        groups = -(-case.length_q // ROWS)
        program.dispatch(
            "attention",
            bindings,
            threads=(groups * LANES, h, b),
            group=(LANES, 1, 1),
            threadgroup_bytes={0: ROWS * d * 4},
        )
        results.append(out)
    return Outcome(
        error=float(np.abs(results[0] - exact).max()),
        same=all(r.tobytes() == results[0].tobytes() for r in results),
        findings=tuple(sorted({f.text for f in host.read_findings(findings)})),
    )


def _memory(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.base is None else array.base


def _strides(array: np.ndarray[Any, Any]) -> bytes:
    return np.array([s // array.itemsize for s in array.strides], np.int64).tobytes()


def _exact(
    case: Case, q: np.ndarray[Any, Any], k: np.ndarray[Any, Any], v: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:  # fmt: skip
    q, k, v = (decode(x, case.element) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2)
    if case.bias:
        scores = scores + bias  # before the scale, as upstream
    if case.causal:
        scores = np.where(np.triu(np.ones(scores.shape[-2:], bool), 1), -np.inf, scores)
    weights = np.exp2((scores - scores.max(-1, keepdims=True)) * case.head_dim**-0.5 * log2(np.e))
    return np.asarray((weights / weights.sum(-1, keepdims=True)) @ v)
