"""The whole chain: build the wheel, audit it, install it clean, run Qwen-Image attention."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_tools.audit.auditor import audit
from build_tools.audit.report import show
from build_tools.commands import wheel
from build_tools.support import process
from build_tools.support.console import say, stdout, step
from build_tools.support.paths import ROOT

# Variables that could bring something of this clone, or a setting of ours, into the environment.
OURS = ("PYTHON", "QWEN_MFA_")


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
        programs = Path(folder) / "venv" / "bin"
        constraints = str(ROOT / "requirements" / "constraints.txt")
        install = [str(programs / "python"), "-m", "pip", "install", "-c", constraints]
        env = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
        with step("Installing the wheel into a clean environment"):
            process.run([sys.executable, "-m", "venv", str(programs.parent)], env=env)
            process.run([*install, f"{built}[cpu]"], cwd=Path(folder), env=env)
        say("Running qwen-mfa selftest there (MLX's own CPU attention is what takes time)")
        command = [str(programs / "qwen-mfa"), "selftest", "--image-tokens", str(args.image_tokens)]
        return subprocess.run(command, cwd=folder, env=env, check=False).returncode


def contents(path: Path) -> None:
    """Print what the wheel holds."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            stdout.print(f"  {entry.file_size:>9}  {entry.filename}")
