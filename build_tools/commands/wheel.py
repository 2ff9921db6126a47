"""Build the wheel into dist/ through the ordinary front end (PEP 517, isolated)."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from build_tools.support.console import say, stdout, step
from build_tools.support.errors import BuildToolsError
from build_tools.support.paths import ROOT
from build_tools.support.process import log_file
from build_tools.support.process import run as run_process

DIST = ROOT / "dist"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--out", type=Path, default=DIST, help="folder for the wheel")


def run(args: argparse.Namespace) -> int:
    """Build and print the wheel's path."""
    stdout.print(str(build(args.out)))
    return 0


def build(out: Path = DIST) -> Path:
    """Build one wheel into ``out``, replacing older ones of this project, and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".wheel-", dir=out) as temporary,
        step("Building the wheel") as detail,
    ):
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", temporary, str(ROOT)]
        constraints = ROOT / "requirements" / "constraints.txt"
        env = {**os.environ, "PIP_CONSTRAINT": str(constraints)}
        run_process(command, cwd=ROOT, env=env, on_line=detail)
        wheels = list(Path(temporary).glob("*.whl"))
        if len(wheels) != 1:
            msg = f"The build made {len(wheels)} wheels instead of one. Full log: {log_file()}"
            raise BuildToolsError(msg)
        target = out / wheels[0].name
        wheels[0].replace(target)
    for old in out.glob("qwen_mfa-*.whl"):
        if old != target:
            old.unlink()
    say(f"Wheel: {target} ({target.stat().st_size / 1024:.0f} KiB)")
    return target
