"""Which Metal sources upstream's kernel generator writes for Qwen-Image's shapes.

The library of `build_tools.native.typecheck` is asked to encode attention as the run time would;
its stand-in device keeps the sources that it is given. Their keys are what shader packs are keyed
by.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from build_tools.native.standins import Standins
from build_tools.support import process
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT

HEADS, HEAD_DIM = 24, 128
SCALE = HEAD_DIM**-0.5
FAMILIES = (8, 9)
INPUTS = ("bf16", "fp16")
# The library knows two classes: "fp32", and anything else.
INTERMEDIATES = ("fp32", "fp16")
LENGTHS = (128, 256, 512, 1024, 1124, 2048, 4096, 4196, 8192, 16384)
VARIANTS = ("upstream", "plain")
CALL = "event.async_copy("
PLAIN_EVENT = ROOT / "swift_pkg" / "overlay" / "Sources" / "PlainSimdgroupEvent.swift"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention call: GPU family, element types, lengths, scale, mask."""

    family: int
    input: str
    intermediate: str
    length_q: int = 1024
    length_kv: int = 1024
    scale: float = SCALE
    causal: bool = False
    heads: int = HEADS
    head_dim: int = HEAD_DIM
    variant: str = "upstream"


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The source of one case, its key in shader packs, and the SHA-256 of its text alone."""

    case: Case
    key: str
    source: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text, options apart."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def copies(self) -> int:
        """Number of asynchronous copies in the kernel."""
        return self.source.count(CALL)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One distinct source and the lengths, Sq = Skv, that lead to it."""

    item: Generated
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that we rely on, and whether it is so."""

    text: str
    holds: bool
    detail: str


class Generator:
    """Runs cases against one built library, each in a process of its own."""

    def __init__(self, library: Path, standins: Standins) -> None:
        self._library = library
        self._standins = standins

    def generate_all(self, cases: list[Case]) -> list[Generated]:
        """Return the sources that ``cases`` have compiled, in their order.

        Raises:
            BuildError: The library ended its process, refused a call, or compiled other than one
                source for it.

        """
        found = []
        for case, answer in zip(cases, self._encode(cases), strict=True):
            sources, origins = answer.get("sources", []), answer.get("origins", [])
            if answer.get("code") != 0 or len(sources) != 1 or len(origins) != 1:
                told = {name: value for name, value in answer.items() if name != "sources"}
                msg = f"{case}: {len(sources)} sources, {told}"
                raise BuildError(msg)
            found.append(Generated(case=case, key=origins[0]["key"], source=sources[0]))
        return found

    def _encode(self, cases: list[Case]) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as empty:
            requests = [_request(case, cache=empty) for case in cases]
            done = subprocess.run(
                [
                    sys.executable, "-m", "build_tools.native.standins.encoding",
                    str(self._library), str(self._standins.library),
                ],
                cwd=ROOT, input=json.dumps(requests), check=False, capture_output=True, text=True,
                timeout=600,
            )  # fmt: skip
        # The library prints on failure, too; our answers are the lines that are objects.
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or len(lines) != len(cases):
            msg = f"the stand-in driver failed ({done.returncode}):\n{done.stderr[-4000:]}"
            raise BuildError(msg)
        return [json.loads(line) for line in lines]


def _request(case: Case, *, cache: str) -> dict[str, Any]:
    env = {
        "METAL_STANDIN_FAMILY": str(case.family),
        "QWEN_MFA_SHADER_VARIANT": case.variant,
        "QWEN_MFA_CACHE_DIR": cache,
    }
    return {**asdict(case), "env": env}


def classes(generator: Generator) -> list[Found]:
    """Return every distinct attention source, both variants, with the lengths that lead to it."""
    cases = [
        replace(case, length_q=length, length_kv=length, variant=variant)
        for case in _class_cases()
        for length in LENGTHS
        for variant in VARIANTS
    ]
    by_key: dict[str, list[Generated]] = {}
    for item in generator.generate_all(cases):
        by_key.setdefault(item.key, []).append(item)
    return [
        Found(item=items[0], lengths=tuple(item.case.length_q for item in items))
        for items in by_key.values()
    ]


def _class_cases() -> list[Case]:
    return [
        Case(family=family, input=kind, intermediate=inner)
        for family in FAMILIES
        for kind in INPUTS
        for inner in INTERMEDIATES
    ]


def check_claims(generator: Generator, found: list[Found], *, work: Path) -> list[Claim]:
    """Hold the generator against what our code and our shader packs rely on."""
    full = Case(family=9, input="bf16", intermediate="fp32")
    low = replace(full, intermediate="fp16")
    short = {"length_q": 256, "length_kv": 256}
    changes: list[tuple[str, Case, dict[str, Any], bool]] = [
        ("the softmax scale is baked in", full, {"scale": SCALE / 2}, False),
        ("the head dimension is baked in", full, {"head_dim": 64}, False),
        ("the number of heads is absent", full, {"heads": 1}, True),
        ("causal or not is absent", full, {"causal": True}, True),
        ("the longer of Sq and Skv chooses the masking strategy", full, {"length_q": 256}, True),
        ("whichever of the two it is", full, {"length_kv": 256}, True),
        ("there are two masking strategies, and the length chooses", full, short, False),
        ("fp16 and bf16 intermediates are one class", low, {"intermediate": "bf16"}, True),
    ]
    return [
        *(_change(generator, *change) for change in changes),
        _two_a_class(found),
        Claim(
            text="the bfloat header is inlined: no quoted include is left",
            holds=not any('#include "' in entry.item.source for entry in found),
            detail=f"{len(found)} sources",
        ),
        _copies(found),
        _plain_has_no_asm([entry.item for entry in found], work),
    ]


def _change(
    generator: Generator, text: str, case: Case, change: dict[str, Any], same: bool
) -> Claim:
    before, after = generator.generate_all([case, replace(case, **change)])
    shown = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in change.items()
    )
    return Claim(text=text, holds=(before.key == after.key) is same, detail=shown)


def _two_a_class(found: list[Found]) -> Claim:
    counts: dict[tuple[int, str, str], int] = {}
    for entry in found:
        if entry.item.case.variant == "upstream":
            case = entry.item.case
            name = (case.family, case.input, case.intermediate)
            counts[name] = counts.get(name, 0) + 1
    return Claim(
        text="lengths enter through the masking strategy only: at most two sources a class",
        holds=max(counts.values()) <= 2,
        detail=f"{len(counts)} classes, {len(LENGTHS)} lengths from {LENGTHS[0]} to {LENGTHS[-1]}",
    )


def _copies(found: list[Found]) -> Claim:
    counts = {
        (e.item.case.family, e.item.case.input, e.item.case.intermediate): e.item.copies
        for e in found
    }
    shown = ", ".join(f"Apple{f} {i}/{m}: {n}" for (f, i, m), n in counts.items())
    return Claim(
        text="every source has asynchronous copies", holds=all(counts.values()), detail=shown
    )


def _plain_has_no_asm(found: list[Generated], work: Path) -> Claim:
    """Let a real C preprocessor say what is left of each source."""
    compiler = process.find("clang", hint="It comes with Swift.")
    folder = work / "preprocess"
    folder.mkdir(parents=True, exist_ok=True)
    # The only system header that the sources include; its contents do not matter here.
    (folder / "metal_stdlib").write_text("", encoding="utf-8")
    wrong = []
    for item in found:
        path = folder / "source.h"
        path.write_text(item.source, encoding="utf-8")
        command = [
            compiler, "-E", "-P", "-x", "c++", "-D__HAVE_BFLOAT__", "-I", str(folder), str(path),
        ]  # fmt: skip
        left = process.capture(command)
        if ("__asm" in left) != (item.case.variant == "upstream"):
            wrong.append(f"{item.case}")
    return Claim(
        text="upstream's variant has inline assembly, ours has none (after preprocessing)",
        holds=not wrong,
        detail="; ".join(wrong) or f"{len(found)} sources",
    )
