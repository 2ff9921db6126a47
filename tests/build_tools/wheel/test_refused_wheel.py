"""A wheel that fails the strict audit is never left in dist/, whatever front end built it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.build_tools.audit.makers import ROOT
from tests.build_tools.conftest import NOT_ISOLATED

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_failing_wheel_does_not_appear(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    kept = shutil.ignore_patterns(".*", "build", "dist", "tests", "docs", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=kept)
    # The library is the installed wheel's; only the declarations are others.
    shutil.copytree(ROOT / "build" / "native", tree / "build" / "native")
    declarations = tree / "mfa_wheel" / "qwen_mfa" / "native" / "abi.cdef"
    text = declarations.read_text(encoding="utf-8")
    declarations.write_text(text + "\nint mfa_never_written(void);\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "build", *NOT_ISOLATED, "--wheel"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "abi-missing" in done.stdout + done.stderr
    assert "mfa_never_written" in done.stdout + done.stderr
    assert list((tree / "dist").iterdir()) == []
