"""Installer environments: a Python of this machine, pip or uv, nothing of ours, one index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_tools.release.platform_matrix import installer_variables
from build_tools.support.errors import ToolError

VERSION = re.compile(r"python(3\.\d+)")
OURS = ("qwen_mfa", "qwen-mfa")
INSTALLERS = ("pip", "uv")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended; ``text`` is everything that it printed."""

    status: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment: nothing of the clone or of the machine's settings reaches it."""

    folder: Path
    python: Path
    installer: str
    url: str

    @property
    def bin(self) -> Path:
        """The folder of the environment's programs."""
        return self.folder / "venv" / "bin"

    def create(self) -> None:
        """Make the environment."""
        self.folder.mkdir(parents=True)
        (self.folder / "home").mkdir()
        target = str(self.folder / "venv")
        made = (
            self._run([str(self.python), "-m", "venv", target])
            if self.installer == "pip"
            else self._run([uv(), "venv", "--quiet", "--python", str(self.python), target])
        )
        self._require(made, "the environment cannot be made")

    def try_install(self, *arguments: str) -> Outcome:
        """Ask the installer for ``arguments``; it may refuse."""
        if self.installer == "pip":
            return self._run([str(self.bin / "python"), "-m", "pip", "install", *arguments])
        python = ["--python", str(self.bin / "python")]
        return self._run([uv(), "pip", "install", *python, *arguments])

    def install(self, *arguments: str) -> Outcome:
        """Ask the installer for ``arguments``; it must obey."""
        done = self.try_install(*arguments)
        self._require(done, f"{self.installer} install {' '.join(arguments)}")
        return done

    def uninstall(self) -> None:
        """Remove qwen-mfa."""
        python = str(self.bin / "python")
        done = (
            self._run([python, "-m", "pip", "uninstall", "--yes", "qwen-mfa"])
            if self.installer == "pip"
            else self._run([uv(), "pip", "uninstall", "--python", python, "qwen-mfa"])
        )
        self._require(done, f"{self.installer} uninstall")

    def check_dependencies(self) -> None:
        """Have the installer check that the requirements of all packages are met."""
        python = str(self.bin / "python")
        command = (
            [python, "-m", "pip", "check"]
            if self.installer == "pip"
            else [uv(), "pip", "check", "--python", python]
        )
        self._require(self._run(command), f"{self.installer} check")

    def run(self, *arguments: str) -> str:
        """Run the installed ``qwen-mfa`` and return what it printed."""
        done = self._run([str(self.bin / "qwen-mfa"), *arguments])
        self._require(done, f"qwen-mfa {' '.join(arguments)}")
        return done.text

    def installed(self) -> str | None:
        """Return the installed version of qwen-mfa, None without one."""
        found = list(self._site().glob("qwen_mfa-*.dist-info"))
        return found[0].name.removesuffix(".dist-info").split("-")[1] if found else None

    def tag(self) -> str:
        """Return the tag of the wheel that was installed."""
        (about,) = self._site().glob("qwen_mfa-*.dist-info/WHEEL")
        lines = about.read_text(encoding="utf-8").splitlines()
        return next(line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: "))

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the installed library, None without one."""
        path = self._site() / "qwen_mfa" / "_native" / "manifest.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def files(self) -> set[str]:
        """Return every file and folder of the environment."""
        top = self.folder / "venv"
        return {path.relative_to(top).as_posix() for path in top.rglob("*")}

    def _site(self) -> Path:
        (found,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return found

    def _run(self, command: list[str]) -> Outcome:
        env = installer_variables(self.url)
        env["HOME"] = str(self.folder / "home")
        done = subprocess.run(
            command,
            env=env,
            cwd=self.folder,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=900,
        )
        return Outcome(status=done.returncode, text=done.stdout)

    def _require(self, done: Outcome, what: str) -> None:
        if done.status != 0:
            msg = f"{what}: exit status {done.status} ({self.python}):\n{done.text[-3000:]}"
            raise ToolError(msg)


def left_behind(before: set[str], after: set[str]) -> list[str]:
    """Return what an uninstallation left: new files, and anything with our name."""
    ours = {path for path in after if any(name in path for name in OURS)}
    # Other packages' byte code comes with running them.
    new = {path for path in after - before if "__pycache__" not in path}
    return sorted(ours | new)


def uv() -> str:
    """Return the path of uv.

    Raises:
        ToolError: It is not installed beside this Python, nor on PATH.

    """
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        msg = "uv was not found; `make setup` installs it into .venv"
        raise ToolError(msg)
    return found


def pythons() -> dict[str, Path]:
    """Return the CPython 3 interpreters of this machine that run: path by version, oldest first.

    Those on PATH, and those that pyenv keeps without showing them.
    """
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], check=False, capture_output=True, text=True)
        folders += sorted(Path(root.stdout.strip()).glob("versions/*/bin"))
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3.*")):
            match = VERSION.fullmatch(path.name)
            if match and match[1] not in found:
                real = _executable(path)
                if real is not None:
                    found[match[1]] = real
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def _executable(python: Path) -> Path | None:
    """Return the interpreter behind ``python``, outside of any virtual environment."""
    code = "import sys, venv, ensurepip; print(sys.implementation.name, sys._base_executable)"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, path = done.stdout.strip().partition(" ")
    return Path(path) if name == "cpython" else None
