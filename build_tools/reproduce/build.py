"""Build the wheel twice under circumstances that have nothing in common, and compare the bytes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_tools.native import portable
from build_tools.support.console import step
from build_tools.support.errors import BuildToolsError
from build_tools.support.paths import ROOT
from build_tools.support.process import capture, log_file, run

OLD = 1_000_000_000  # 2001-09-09: what every file of the second clone is dated
# Runs a program with another umask, and on one CPU only; both are inherited by all it starts.
LAUNCHER = """
import os, sys
os.umask(int(sys.argv[1], 8))
if sys.argv[2] == "one" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execvp(sys.argv[3], sys.argv[3:])
"""


class ReproduceError(BuildToolsError):
    """The builds cannot even be tried; the message says what to do first."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Everything that must not matter.

    Attributes:
        folder: Where the clone lies, below the work folder.
        front_end: "pip" for `pip wheel .`, "build" for `python -m build` (sdist, wheel from it).
        umask: In octal digits.
        cpus: "all" or "one".
        clock: Offset for faketime, where that is installed; "" for none.
        old_files: Whether every file is dated 2001.
        variables: Environment variables.

    """

    folder: str
    front_end: str
    umask: str
    cpus: str
    clock: str
    old_files: bool
    variables: Mapping[str, str]

    def describe(self) -> str:
        """Return one line for people."""
        clock = (
            f"clock {self.clock}" if self.clock and shutil.which("faketime") else "clock as it is"
        )
        files = "files of 2001" if self.old_files else "files of now"
        told = " ".join(f"{name}={value}" for name, value in sorted(self.variables.items()))
        front_end = "pip wheel ." if self.front_end == "pip" else "python -m build"
        return f"{front_end}: umask {self.umask}, {self.cpus} CPU, {clock}, {files}, {told}"


PLAIN = Circumstances(
    folder="a",
    front_end="pip",
    umask="022",
    cpus="all",
    clock="",
    old_files=False,
    variables={
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "LOGNAME": "alice",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
        "USER": "alice",
    },
)
STRANGE = Circumstances(
    folder="another/folder/much/further/down/and/of/quite/another/name/clone-2",
    front_end="build",
    umask="077",
    cpus="one",
    clock="+26h",
    old_files=True,
    variables={
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "C",
        "LOGNAME": "bob",
        "PYTHONHASHSEED": "4242",
        "TZ": "Pacific/Kiritimati",
        "USER": "bob",
    },
)


def clone(target: Path, *, commit: str = "HEAD") -> None:
    """Clone this repository into ``target`` at ``commit``.

    Raises:
        ReproduceError: This is no git clone.

    """
    if not (ROOT / ".git").exists():
        msg = f"{ROOT} is no git clone, so it cannot be cloned. Run this in a clone."
        raise ReproduceError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)])
    wanted = capture(["git", "rev-parse", commit], cwd=ROOT)
    run(["git", "checkout", "--quiet", "--detach", wanted], cwd=target)


def uncommitted() -> list[str]:
    """Return the files that a fresh clone will not have as they are here."""
    return capture(["git", "status", "--porcelain"], cwd=ROOT).splitlines()


def build(
    work: Path,
    how: Circumstances,
    *,
    toolchain: str,
    commit: str = "HEAD",
    isolated: bool = True,
) -> Path:
    """Clone, build one wheel under these circumstances, and return it.

    Args:
        work: An empty folder.
        how: The circumstances.
        toolchain: "swift", "cc" or "none".
        commit: What to check out.
        isolated: Whether the front ends install the build tools anew, or use this environment's.

    Raises:
        ToolError: The build failed; the message has its last lines and names its log.

    """
    tree = work / how.folder
    home = work / f"home-{how.variables['USER']}"
    out = work / f"out-{how.variables['USER']}"
    for folder in (home, out):
        folder.mkdir(parents=True)
    clone(tree, commit=commit)
    if how.old_files:
        for path in tree.rglob("*"):
            if not path.is_symlink():
                os.utime(path, (OLD, OLD))
    command = _command(tree, how, out, isolated=isolated)
    env = _environment(how, home, tree, toolchain, isolated=isolated)
    with step(f"Building: {toolchain}, {how.describe()}") as detail:
        run(command, cwd=tree, env=env, on_line=detail)
    wheels = list(out.glob("*.whl"))
    if len(wheels) != 1:
        msg = f"The build made {len(wheels)} wheels instead of one. Full log: {log_file()}"
        raise ReproduceError(msg)
    return wheels[0]


def _command(tree: Path, how: Circumstances, out: Path, *, isolated: bool) -> list[str]:
    python = sys.executable
    commands = {
        "pip": [python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), "."],
        "build": [python, "-m", "build", "--outdir", str(out), str(tree)],
    }
    if not isolated:
        commands["pip"].append("--no-build-isolation")
        commands["build"] += ["--no-isolation", "--skip-dependency-check"]
    faketime = shutil.which("faketime") if how.clock else None
    shifted = [faketime, "-f", how.clock] if faketime else []
    return [*shifted, python, "-c", LAUNCHER, how.umask, how.cpus, *commands[how.front_end]]


def _environment(
    how: Circumstances, home: Path, tree: Path, toolchain: str, *, isolated: bool
) -> dict[str, str]:
    constraints = str(tree / "requirements" / "constraints.txt")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"SOURCE_DATE_EPOCH", "PYTHONPATH", "CFLAGS", "LDFLAGS", "MAKEFLAGS"}
    }
    cache = capture([sys.executable, "-m", "pip", "cache", "dir"])
    return {
        **kept,
        **how.variables,
        "HOME": str(home),
        "NO_FAKE_STAT": "1",  # faketime: leave the dates of files alone
        **({"PIP_BUILD_CONSTRAINT": constraints} if isolated else {}),
        "PIP_CACHE_DIR": cache,
        "PIP_CONSTRAINT": constraints,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        portable.CHOICE: toolchain,
    }


def toolchains() -> list[str]:
    """Return the toolchains of this machine: each is compared with itself."""
    found = [tool for tool in ("swift", "cc") if shutil.which(tool)]
    return found or ["none"]
