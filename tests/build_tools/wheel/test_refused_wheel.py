"""A wheel that fails the strict audit is never left in dist/, whatever front end built it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from build_tools.native import portable
from tests.build_tools.audit.makers import ROOT, needs_cc

if TYPE_CHECKING:
    from pathlib import Path


@needs_cc
@pytest.mark.slow
def test_a_failing_wheel_does_not_appear(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    kept = shutil.ignore_patterns(".*", "build", "dist", "tests", "docs", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=kept)
    declarations = tree / "mfa_wheel" / "qwen_mfa" / "native" / "abi.cdef"
    text = declarations.read_text(encoding="utf-8")
    declarations.write_text(text + "\nint mfa_never_written(void);\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--wheel"],
        cwd=tree,
        env={**os.environ, portable.CHOICE: "cc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "abi-missing" in done.stdout + done.stderr
    assert "mfa_never_written" in done.stdout + done.stderr
    assert list((tree / "dist").iterdir()) == []
