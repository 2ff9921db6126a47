"""``qwen-mfa selftest --metal``: everything about the Metal engine that only a Mac can tell.

Validates every variant with both classes of intermediate precision, where each shader came from,
whether thousands of calls leave anything behind, and the time against MLX for Qwen-Image's shapes;
each in a process of its own, since a driver may end it. The report is one JSON file.

Exit status: 0 everything holds, 1 something does not, 3 this machine cannot run the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qwen_mfa
from qwen_mfa import machine
from qwen_mfa.cli import info
from qwen_mfa.kernels.metal import device

if TYPE_CHECKING:
    import argparse

SCHEMA = 1
PASSED, FAILED, REFUSED = 0, 1, 3
SECTIONS = {"validation": 1800.0, "leak": 900.0, "timing": 1800.0}  # seconds allowed
_MARK = "qwen-mfa section: "  # the library prints to standard output too


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that belong to ``--metal``."""
    group = parser.add_argument_group("the Metal engine")
    group.add_argument(
        "--metal", action="store_true", help="validate, measure and watch the Metal engine instead"
    )
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="with --metal: write the JSON report here"
    )
    group.add_argument(
        "--quick", action="store_true", help="with --metal: small shapes and few calls"
    )


def run(args: argparse.Namespace) -> int:
    """Run every section, write the report, and return the exit status."""
    if args.report is not None:
        args.report.absolute().parent.mkdir(parents=True, exist_ok=True)
    report = gather(quick=args.quick)
    if args.report is not None:
        write(args.report, report)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return {"passed": PASSED, "failed": FAILED, "refused": REFUSED}[report["result"]]


def gather(*, quick: bool) -> dict[str, Any]:
    """Return the report."""
    here = machine.read()
    refusal = device.refusal()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "result": "refused",
        "reasons": [refusal] if refusal else [],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "qwen-mfa": qwen_mfa.__version__,
        "host": asdict(here),
        "library": info.gather()["library"],
        "checks": device.as_rows(),
        "expectation": device.prefers_mlx(here),
        "sections": {},
    }
    if refusal is not None:
        return report
    for name, limit in SECTIONS.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        section = in_child(name, quick=quick, limit=limit)
        report["sections"][name] = section
        report["reasons"] += section["failures"]
    report["result"] = "failed" if report["reasons"] else "passed"
    return report


def in_child(name: str, *, quick: bool, limit: float) -> dict[str, Any]:
    """Run one section in a process of its own; its death is a failure like any other."""
    command = [sys.executable, "-m", "qwen_mfa.cli.metal_sections", name, *["--quick"] * quick]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failures": [f"{name}: no end within {limit:g} s"]}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            section: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return section
    status = done.returncode
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {
        "failures": [f"{name}: its process ended ({how}: {last})"],
        "output": done.stdout[-4096:],
    }


def answer(section: dict[str, Any]) -> None:
    """Print a section's outcome so that `in_child` finds it."""
    print(_MARK + json.dumps(section), flush=True)


def write(path: Path, report: dict[str, Any]) -> None:
    """Write ``report`` to ``path``, whole or not at all."""
    path = path.absolute()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(report, stream, indent=2)
            stream.write("\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def as_text(report: dict[str, Any]) -> str:
    """Lay the report out on one screen."""
    lines = [f"{row['subject']:<14} {row['found']}" for row in report["checks"]]
    if report["expectation"]:
        lines.append(f"{'expectation':<14} {report['expectation']}")
    sections = report["sections"]
    validations = sections.get("validation", {}).get("validations", [])
    if validations:
        good = sum(validation["ok"] for validation in validations)
        lines.append(f"{'validation':<14} {good} of {len(validations)} variants hold")
    lines += [
        f"{'shader':<14} {text}" for text in sections.get("validation", {}).get("shaders", [])
    ]
    if "calls" in sections.get("leak", {}):
        leak = sections["leak"]
        lines.append(f"{'leak check':<14} {leak['calls']} calls, {leak['growth']} bytes more")
    lines += [
        f"{'timing':<14} {row['kernel']}: {row['text']}"
        for row in sections.get("timing", {}).get("rows", [])
    ]
    return "\n".join([*lines, "", f"{report['result'].upper()}", *report["reasons"]])
