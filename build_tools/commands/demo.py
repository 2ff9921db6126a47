"""The whole chain: build the wheel, audit it, install it clean, run Qwen-Image attention."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.audit.auditor import audit
from build_tools.audit.report import show
from build_tools.commands import wheel
from build_tools.release.installers import Environment
from build_tools.support.console import say, stdout, step
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    import argparse

HELP = "build, audit, install clean and run Qwen-Image attention, showing the result"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--image-tokens", type=int, default=1024, help="image tokens (default 1024: 512 x 512)"
    )


def run(args: argparse.Namespace) -> int:
    """Run every step; the exit status is that of the self-test."""
    built = wheel.build()
    contents(built)
    report = audit(built)
    show(report)
    if report.findings:
        return 1
    # Outside the clone: nothing here can be found by accident.
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-clean-") as folder:
        clean = Environment(folder=Path(folder))
        with step("Installing the wheel into a clean environment"):
            clean.create()
            constraints = str(ROOT / "requirements" / "constraints.txt")
            clean.install("-c", constraints, f"{built}[cpu]")
        say("Running qwen-mfa selftest there (MLX's own CPU attention is what takes time)")
        command = [str(clean.bin / "qwen-mfa"), "selftest", "--image-tokens"]
        return subprocess.run(
            [*command, str(args.image_tokens)], cwd=folder, env=clean.variables(), check=False
        ).returncode


def contents(path: Path) -> None:
    """Print what the wheel holds."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            stdout.print(f"  {entry.file_size:>9}  {entry.filename}", markup=False)
