"""The built library with its kernels executed: every recorded source, against float64.

Between a call and its result lies what a Mac has, but for Apple's own parts: upstream's Swift with
our overlay, the Metal sources that it writes, and software Metal in the place of a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from build_tools.native.standins import Standins

COMPILER = ROOT / "tests" / "standins" / "software_metal" / "compile.py"
FAMILIES, VARIANTS = (8, 9), ("upstream", "plain")
# Lengths Sq and Skv for each of the two masking strategies; none is a multiple of a block.
LENGTHS = ((57, 57), (37, 91), (37, 523), (523, 45))
MASKS, LAYOUTS = ("none", "padding", "additive", "causal"), ("dense", "interleaved")
SCHEDULES = ("forward", "reversed", *(f"shuffled:{seed}" for seed in range(1, 9)))
# Largest errors allowed, of results of size 1, by input and class of intermediates.
ALLOWED = {
    ("bf16", "fp32"): 3e-6,
    ("fp16", "fp32"): 3e-6,
    ("bf16", "fp16"): 2e-3,
    ("fp16", "fp16"): 1e-2,  # scores in FP16: the package never asks for it
    ("fp32", "fp32"): 3e-6,
}
# What the checker finds in upstream's sources and why it does no harm (docs/upstream.md).
KNOWN = {"race inside a simdgroup: write of buffer 4": "lanes of a row write the same L"}
# Only where the last block of rows is not full: what is behind the last row is computed from that
# row, which others may be writing, and dropped.
KNOWN_BEHIND = {
    "race between simdgroups: write of buffer 4": "rows behind the last write the last one's L",
    "uninitialised: read of threadgroup memory 0": "queries behind the last row",
    "ordered by a barrier for other memory only: read of buffer 3": "O behind the last row",
    "ordered by a barrier for other memory only: write of buffer 3": "O behind the last row",
}
ROWS = 64  # a multiple of every block of rows
QWEN_IMAGE_TOKENS = 1124  # 512 squared with a prompt of 100 tokens
TIMEOUT = 3600


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention call, and the device and shader variant that compute it."""

    family: int
    input: str
    intermediate: str
    variant: str
    length_q: int
    length_kv: int
    mask: str = "none"
    layout: str = "dense"
    batch: int = 2
    heads: int = 2
    head_dim: int = 128
    seed: int = 1
    schedule: str = "forward"

    @property
    def allowed(self) -> float:
        """Largest error that is taken for right."""
        return ALLOWED[self.input, self.intermediate]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a case; ``why`` says what is wrong, or is empty."""

    case: Case
    error: float
    bits: str
    findings: tuple[str, ...]
    keys: tuple[str, ...]
    why: str


class Simulator:
    """Runs cases against one built library."""

    def __init__(self, library: Path, standins: Standins, *, cache: Path) -> None:
        self.library = library
        self.standins = standins
        self._cache = cache

    def environment(self, family: int, variant: str, *, check: bool = False) -> dict[str, str]:
        """Return what a process needs to see this machine as a Mac whose GPU is software Metal."""
        return os.environ | {
            "METAL_STANDIN_COMPILER": str(COMPILER),
            "METAL_STANDIN_FAMILY": str(family),
            "METAL_STANDIN_LIBRARY": str(self.standins.library),
            "QWEN_MFA_SHADER_VARIANT": variant,
            "QWEN_MFA_LIBRARY": str(self.library),
            "QWEN_MFA_CACHE_DIR": str(self._cache / "package"),
            "SOFTWARE_METAL_CACHE": str(self._cache / "kernels"),
            "SOFTWARE_METAL_CHECK": "1" if check else "",
            # What ends a process says so in a line; Swift would add pages.
            "SWIFT_BACKTRACE": "enable=no",
        }

    def run(self, cases: list[Case], *, check: bool = False) -> list[Result]:
        """Compute ``cases``, those of one device in one process.

        Raises:
            BuildError: A process ended before its time: what it said is in the message.

        """
        results: dict[Case, Result] = {}
        for family, variant in dict.fromkeys((case.family, case.variant) for case in cases):
            ours = [case for case in cases if (case.family, case.variant) == (family, variant)]
            answers = self._answers(ours, self.environment(family, variant, check=check))
            for case, answer in zip(ours, answers, strict=True):
                results[case] = _judge(case, answer)
        return [results[case] for case in cases]

    def _answers(self, cases: list[Case], env: Mapping[str, str]) -> list[dict[str, Any]]:
        module = "build_tools.native.standins.simulating"
        done = subprocess.run(
            [sys.executable, "-m", module, str(self.library), str(self.standins.library)],
            cwd=ROOT, env=dict(env), input=json.dumps([asdict(case) for case in cases]),
            check=False, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or len(lines) != len(cases):
            at = cases[min(len(lines), len(cases) - 1)]
            msg = f"{at} ended its process ({done.returncode}):\n{done.stderr[-2000:]}"
            raise BuildError(msg)
        return [json.loads(line) for line in lines]


def _judge(case: Case, answer: dict[str, Any]) -> Result:
    origins = answer.get("origins", [])
    error = answer.get("error")
    # Both kernels of a call, the mask's too.
    stated = all(o["options"].startswith("language=3.2 math=relaxed ") for o in origins)
    known = KNOWN | (KNOWN_BEHIND if case.length_q % ROWS else {})
    unknown = [text for text in answer.get("findings", []) if text not in known]
    why = ""
    if answer["code"] != 0:
        why = f"error code {answer['code']}"
    elif not stated:
        why = f"compiled without a stated language or math mode: {origins}"
    elif unknown:
        why = "; ".join(unknown)
    elif error is None or not error <= case.allowed:
        why = f"error {error}, allowed is {case.allowed:g}"
    return Result(
        case=case,
        error=float("nan") if error is None else error,
        bits=answer.get("bits", ""),
        findings=tuple(answer.get("findings", ())),
        keys=tuple(o["key"] for o in origins),
        why=why,
    )


def _classes() -> Iterator[Case]:
    for family in FAMILIES:
        for kind, intermediate in ALLOWED:
            yield Case(
                family=family, input=kind, intermediate=intermediate, variant="upstream",
                length_q=0, length_kv=0,
            )  # fmt: skip


def numeric_cases() -> list[Case]:
    """Return a case for each class, variant, masking strategy, mask and layout."""
    return [
        replace(base, variant=variant, length_q=q, length_kv=kv, mask=mask, layout=layout)
        for base in _classes()
        for variant in VARIANTS
        for q, kv in LENGTHS
        for mask in MASKS
        for layout in LAYOUTS
        # Causal is aligned at the top left there, which MLX has only where both lengths agree.
        if mask != "causal" or q == kv
    ]


def checked_cases() -> list[Case]:
    """Return a few cases of every source, to be run with the memory checker."""
    return [
        replace(base, variant=variant, length_q=q, length_kv=kv, mask="additive", batch=1)
        for base in _classes()
        for variant in VARIANTS
        for q, kv in ((57, 57), (37, 523), (ROWS, 91), (ROWS, 523))
    ]


def scheduled_cases() -> list[Case]:
    """Return cases for each class, one with an additive mask and one causal, in ten schedules."""
    return [
        replace(base, length_q=57, length_kv=kv, mask=mask, schedule=schedule)
        for base in _classes()
        for mask, kv in (("additive", 91), ("causal", 57))
        for schedule in SCHEDULES
    ]


def qwen_image_cases(heads: int) -> list[Case]:
    """Return Qwen-Image's own shape at 512 squared with a prompt of 100 tokens, padded."""
    return [
        Case(
            family=family, input="bf16", intermediate="fp32", variant="plain",
            length_q=QWEN_IMAGE_TOKENS, length_kv=QWEN_IMAGE_TOKENS, mask="padding",
            layout="interleaved", batch=1, heads=heads,
        )
        for family in FAMILIES
    ]  # fmt: skip


def different_bits(results: list[Result], *, apart_from: str) -> list[str]:
    """Return what differs in a bit among cases that differ in the field ``apart_from`` only."""
    seen: dict[tuple[object, ...], Result] = {}
    differ = []
    for result in results:
        facts = asdict(result.case)
        del facts[apart_from]
        first = seen.setdefault(tuple(facts.values()), result)
        if first.bits != result.bits:
            differ.append(f"{result.case} differs from {getattr(first.case, apart_from)}")
    return differ
