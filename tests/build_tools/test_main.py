"""The command line outside of the clone's environment."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_outside_of_the_environment_it_says_how_to_set_it_up(root: Path) -> None:
    # -S: no site-packages, so none of what the build tools need.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "build_tools", "audit", "x.whl"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "`make setup`" in line
    assert line.endswith(".venv/bin/python -m build_tools")
