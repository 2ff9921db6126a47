"""Check this installation: one screen that can be pasted into an issue.

Every kernel is validated and measured for Qwen-Image's shapes, unless that is known. Exit status:
0 fine, 1 it works but something is worth doing, 2 broken.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import exp
from typing import TYPE_CHECKING, Any

import qwen_mfa
from qwen_mfa import machine
from qwen_mfa.cli import advice, info, precision, selftest_metal
from qwen_mfa.cli.explain import finding_as_json, removal_as_json
from qwen_mfa.cli.table import seconds, table
from qwen_mfa.errors import BackendError
from qwen_mfa.kernels import registry
from qwen_mfa.kernels.metal import device
from qwen_mfa.problem import Problem
from qwen_mfa.selection import choose, decisions, removal
from qwen_mfa.transforms import padding
from qwen_mfa.transforms.padding import Pattern

if TYPE_CHECKING:
    import argparse

    from qwen_mfa.cli.advice import Advice
    from qwen_mfa.machine import Host
    from qwen_mfa.selection.candidates import Finding
    from qwen_mfa.selection.choose import Choice
    from qwen_mfa.selection.removal import Removal


# Image tokens at 512, 1024 and 1328 pixels square, each with some text: Qwen-Image's own sizes.
TEXT_TOKENS = 100
IMAGES = {"512 x 512": 1024, "1024 x 1024": 4096, "1328 x 1328": 6889}
# Of how many text slots, at which size, it is asked whether the others are left out.
SLOTS, PADDED_IMAGE = 512, "1024 x 1024"
# mflux's latents are float32, and so is what reaches attention; `--precision bfloat16` and
# Qwen-Image 2.1 give bfloat16, which one size is enough to show.
ARRIVES, ALSO = "float32", {"1024 x 1024": "bfloat16"}
MEBIBYTE = 1 << 20
NOTHING = "Nothing to do: this is as fast as it gets here."
_SHADER_LIMIT = 300.0  # seconds
_WIDEST = 60  # of a reason in the table; --json and `explain` have all of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that the command found."""

    machine: Host
    library: dict[str, Any]
    choices: dict[str, Choice | str]
    cache: dict[str, Any]
    failures: dict[str, str]
    advice: list[Advice]
    shaders: tuple[str, ...] = ()
    bfloat16: float | None = None
    padding: dict[str, Removal] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Return the exit status."""
        broken = self.library["state"] == "unusable" or not self.machine.mlx
        broken = broken or any(isinstance(choice, str) for choice in self.choices.values())
        if broken:
            return 2
        return 1 if self.advice or self.failures or self.cache["notes"] else 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--forget", action="store_true", help="validate and measure again what is on record"
    )


def run(args: argparse.Namespace) -> int:
    """Examine, print, and return the exit status."""
    report = examine(forget=args.forget)
    print(json.dumps(as_json(report), indent=2) if args.json else as_text(report))
    return report.status


def examine(*, forget: bool = False) -> Report:
    """Find out everything."""
    kept = decisions.opened()
    if forget:
        kept.store.clear()
    library = info.gather()["library"]
    here = machine.read()
    choices = {title: _choice(tokens, ARRIVES) for title, tokens in IMAGES.items()} | {
        f"{title}, {dtype}": _choice(IMAGES[title], dtype) for title, dtype in ALSO.items()
    }
    findings = [
        finding
        for choice in choices.values()
        if not isinstance(choice, str)
        for finding in choice.findings
    ]
    kept.store.put("written by doctor", None)  # nothing: it shows whether the file can be written
    names = [name for name in registry.NAMES if name != "mlx"]
    return Report(
        machine=here,
        library=library,
        choices=choices,
        cache={
            "file": str(kept.store.path),
            "records": len(kept.store.records()),
            "notes": kept.store.notes,
        },
        failures={name: kept.failure(name) for name in names if kept.failure(name)},
        advice=advice.give(here, library["state"], library.get("reason", ""), findings),
        shaders=_shaders(),
        bfloat16=precision.measure() if here.mlx else None,
        padding=_padding() if PADDED_IMAGE in IMAGES else {},
    )


def _shaders() -> tuple[str, ...]:
    """Say where the Metal engine's shaders come from, where it can run; asked in a child."""
    if device.refusal() is not None:
        return ()
    found = selftest_metal.in_child("shaders", quick=False, limit=_SHADER_LIMIT)
    return (*found.get("shaders", ()), *found["failures"])


def _padding() -> dict[str, Removal]:
    """Return what becomes of text slots that are not used, by kind of mask."""
    of = _problem(IMAGES[PADDED_IMAGE] + SLOTS)
    pattern = Pattern(hidden=SLOTS - TEXT_TOKENS, runs=2)
    shape = (1, 1, 1, of.seq_kv)
    found = {}
    for kind in ("bool", "additive"):
        masked = replace(of, mask=kind, mask_shape=shape)
        if padding.may_apply(masked):
            with suppress(BackendError):  # told by `_choice`
                found[kind] = removal.decide(masked, pattern)
    return found


def _choice(image_tokens: int, dtype: str) -> Choice | str:
    try:
        return choose.choose(_problem(image_tokens + TEXT_TOKENS, dtype))
    except BackendError as error:  # a forced kernel that cannot run
        return str(error)


def _problem(tokens: int, dtype: str = "bfloat16") -> Problem:
    return Problem(
        batch=1,
        heads_q=24,
        heads_kv=24,
        seq_q=tokens,
        seq_kv=tokens,
        head_dim=128,
        value_dim=128,
        dtype=dtype,
    )


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "status": report.status,
        "qwen-mfa": qwen_mfa.__version__,
        "host": {
            **asdict(report.machine),
            "gpu_family": report.machine.gpu_family,
            "mlx_has_matrix_kernels": report.machine.mlx_has_matrix_kernels,
        },
        "library": report.library,
        "shapes": {
            title: {"error": choice}
            if isinstance(choice, str)
            else {
                "kernel": choice.kernel.name,
                "reason": choice.reason,
                "candidates": [finding_as_json(finding) for finding in choice.findings],
            }
            for title, choice in report.choices.items()
        },
        "padding": {kind: removal_as_json(found) for kind, found in report.padding.items()},
        "cache": report.cache,
        "shaders": report.shaders,
        "bfloat16": report.bfloat16,
        "failures": report.failures,
        "advice": [x.text for x in report.advice],
    }


def as_text(report: Report) -> str:
    """Lay the report out on one screen."""
    here, library = report.machine, report.library
    native = [f"{library['state']}: {library.get('reason', '')}"]
    if library["state"] == "ready":
        native = [
            f"{library['engine']} engine, {library['origin']}, sha256 {library['sha256'][:16]}",
            library["library"],
            f"built by {library['built by']}, {library['runs as']}",
        ]
    lines = [
        f"qwen-mfa {qwen_mfa.__version__}, Python {here.python}",
        f"host     {here.system} {here.release} ({here.build}), {here.machine}",
        (
            f"         {here.chip or 'unknown chip'}, {here.cpus} processors, "
            f"{here.memory // MEBIBYTE} MiB, GPU {here.gpu_family}"
            f"{f', NVIDIA driver {here.driver}' if here.driver else ''}"
        ),
        f"         features: {' '.join(here.features) or 'none known'}",
        f"MLX      {here.mlx or 'missing'}: {', '.join(here.backends) or 'no backend installed'}",
        f"         computes on {info.device()}",
        *_matrix_units(here),
        *(f"{'' if i else 'library':<8} {line}" for i, line in enumerate(native)),
        *(f"expect   {text}" for text in [advice.expectation(here)] if text),
        *([] if report.bfloat16 is None else [f"mflux    {precision.sentence(report.bfloat16)}"]),
        f"cache    {report.cache['file']}, {report.cache['records']} records",
        *(f"         note: {note}" for note in report.cache["notes"]),
        *(f"shader   {text}" for text in report.shaders),
        *(f"failed   {name} (last time): {why}" for name, why in report.failures.items()),
        "",
        (
            f"Qwen-Image's attention as mflux computes it (B 1, H 24, D 128, {ARRIVES}, "
            f"image and {TEXT_TOKENS} text tokens):"
        ),
        "",
        _kernels(report),
        "",
        *_about_padding(report.padding),
        *_outcome(report),
    ]
    return "\n".join(lines)


def _about_padding(found: dict[str, Removal]) -> list[str]:
    if not found:
        return []
    words = []
    for kind, decision in found.items():
        worst = min(decision.samples, key=lambda x: x.gain, default=None)
        ratio = f" {exp(-worst.gain):.2f}" if worst else ""
        words.append(f"{kind}{ratio}, {'left out' if decision.removed else 'masked'}")
    share = f"{SLOTS - TEXT_TOKENS} of {SLOTS} text slots"
    title = f"Padding at {PADDED_IMAGE} ({share}), time without it to with the mask"
    return [f"{title}: {'; '.join(words)}", ""]


def _matrix_units(here: Host) -> list[str]:
    if here.system != "macOS":
        return []
    has = "has" if here.mlx_has_matrix_kernels else "does not have"
    return [f"         this build {has} kernels for M5's matrix units (on this macOS)"]


def _kernels(report: Report) -> str:
    rows = []
    for title, choice in report.choices.items():
        if isinstance(choice, str):
            rows.append([title, "-", "BROKEN", "", "", "", "", choice])
            continue
        lines = [
            _cells(x, runs=x.kernel is choice.kernel)
            for x in choice.findings
            if report.machine.system == "macOS" or not x.kernel.name.startswith("metal")
        ]
        if choice.kernel.name == "mlx":
            lines.insert(0, ["mlx", "runs", "-", "", "-", "-", "" if lines else choice.reason])
        rows += [[title if i == 0 else "", *line] for i, line in enumerate(lines)]
    header = [
        "image",
        "kernel",
        "",
        "error",
        "measured at",
        "time",
        "MLX's time",
        "finding",
    ]
    return table(header, rows)


def _cells(finding: Finding, *, runs: bool) -> list[str]:
    result, samples = finding.validation, finding.samples
    why = samples[-1].ratio if samples else finding.reason
    validation = "-" if result is None else f"{result.error:.1e}" if result.ok else "WRONG"
    where = _brief(samples[-1].problem) if samples else ""
    times = [seconds(t) for x in samples[-1:] for t in (x.seconds, x.seconds_mlx)] or ["-", "-"]
    return [
        finding.kernel.name,
        "runs" if runs else "",
        validation,
        where,
        *times,
        why if len(why) <= _WIDEST else why[: _WIDEST - 1] + "…",
    ]


def _brief(problem: str) -> str:
    """Return the heads and rows of a problem in words, such as ``H 24 Sq 1124 Skv 1124``."""
    found = re.search(r"H (\S+) Sq (\d+)", problem)
    return f"{found[2]} tokens, {found[1]} heads" if found else problem


def _outcome(report: Report) -> list[str]:
    if not report.advice:
        end = "Nothing to do." if advice.expectation(report.machine) else NOTHING
        return [end if not report.status else ""]
    title = "BROKEN. To do:" if report.status == 2 else "Worth doing, the greatest gain first:"
    return [title, *(f"{i}. {x.text}" for i, x in enumerate(report.advice, 1))]
