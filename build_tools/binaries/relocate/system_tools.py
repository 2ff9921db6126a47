"""Edit load commands by the system's install_name_tool, on macOS (or LLVM's, anywhere)."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.binaries.relocate.adhoc import read_thin
from build_tools.binaries.relocate.errors import RelocationError
from build_tools.support.process import capture

if TYPE_CHECKING:
    from build_tools.binaries.relocate.plan import Plan


def edit_by_tool(data: bytes, plan: Plan, *, name: str, tool: str = "install_name_tool") -> bytes:
    """Return ``data`` with the load commands that ``plan`` asks for, edited by ``tool``.

    Raises:
        RelocationError: The tool left other load commands than planned.
        ToolError: The tool failed.

    """
    wanted = _wanted(data, plan, name)
    with tempfile.TemporaryDirectory(prefix="relocate-") as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        capture([tool, *_arguments(plan), str(file)])
        # One option removes one rpath, however often it is there; so again, for those left.
        for path in plan.remove_rpaths:
            left = read_thin(file.read_bytes(), name).rpaths
            if left.count(path) > wanted.count(path):
                capture([tool, "-delete_rpath", path, str(file)])
        result = file.read_bytes()
    if sorted(read_thin(result, name).rpaths) != sorted(wanted):
        msg = f"{tool} left other rpaths in {name} than planned: {', '.join(wanted)}"
        raise RelocationError(msg)
    return result


def _wanted(data: bytes, plan: Plan, name: str) -> list[str]:
    rpaths = list(read_thin(data, name).rpaths)
    for path in plan.remove_rpaths:
        rpaths.remove(path)
    return rpaths


def _arguments(plan: Plan) -> list[str]:
    arguments = ["-id", plan.name]
    for old, new in plan.changes:
        arguments += ["-change", old, new]
    for path in dict.fromkeys(plan.remove_rpaths):
        arguments += ["-delete_rpath", path]
    return arguments


def confirm_signature(file: Path) -> None:
    """Let macOS judge the signature of ``file``; elsewhere our own reader has the last word.

    Raises:
        ToolError: `codesign` rejects it, with its own words.

    """
    if sys.platform == "darwin" and shutil.which("codesign"):
        capture(["codesign", "--verify", "--strict", "--verbose=2", str(file)])
