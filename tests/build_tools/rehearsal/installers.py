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

from build_tools.support.errors import ToolError

VERSION = re.compile(r"python(3\.\d+)")
OURS = ("qwen_mfa", "qwen-mfa")
INSTALLERS = ("pip", "uv")


# What every installer may know of this machine; and, without an index of ours, of its network.
PASSED_ON = ("PATH", "LANG", "TERM", "TMPDIR")
NETWORK = re.compile(r"HOME|(PIP|HTTPS?|NO|ALL|REQUESTS|SSL)_.*", re.IGNORECASE)


def variables(url: str | None) -> dict[str, str]:
    """Return the environment of a user who has nothing of this clone on any path.

    Args:
        url: The only index that the user knows; that of this machine if ``None``.

    """
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_YES": "1"}
    if url is None:
        network = {name: text for name, text in os.environ.items() if NETWORK.fullmatch(name)}
        return {**kept, **network, **quiet}
    return {
        **kept,
        **quiet,
        "PIP_INDEX_URL": url,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "UV_DEFAULT_INDEX": url,
        "UV_NO_CONFIG": "1",
        "UV_NO_CACHE": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended; ``text`` is everything that it printed."""

    status: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment: nothing of the clone or of the machine's settings reaches it.

    Attributes:
        folder: Where it is made.
        python: The interpreter.
        installer: One of `INSTALLERS`.
        url: The only index that it knows; that of this machine if ``None``.

    """

    folder: Path
    python: Path = Path(sys.executable)
    installer: str = "pip"
    url: str | None = None

    @property
    def bin(self) -> Path:
        """The folder of the environment's programs."""
        return self.folder / "venv" / "bin"

    def create(self) -> None:
        """Make the environment."""
        (self.folder / "home").mkdir(parents=True)
        target = str(self.folder / "venv")
        made = (
            self._run([str(self.python), "-m", "venv", target])
            if self.installer == "pip"
            else self._run([uv(), "venv", "--quiet", "--python", str(self.python), target])
        )
        self._require(made, "the environment cannot be made")

    def try_install(self, *arguments: str) -> Outcome:
        """Ask the installer for ``arguments``; it may refuse."""
        return self._ask("install", *arguments)

    def install(self, *arguments: str) -> Outcome:
        """Ask the installer for ``arguments``; it must obey."""
        done = self.try_install(*arguments)
        self._require(done, f"{self.installer} install {' '.join(arguments)}")
        return done

    def uninstall(self) -> None:
        """Remove qwen-mfa."""
        self._require(self._ask("uninstall", "qwen-mfa"), f"{self.installer} uninstall")

    def check_dependencies(self) -> None:
        """Have the installer check that the requirements of all packages are met."""
        self._require(self._ask("check"), f"{self.installer} check")

    def variables(self) -> dict[str, str]:
        """Return the environment variables of everything that runs there."""
        own = {} if self.url is None else {"HOME": str(self.folder / "home")}
        return {**variables(self.url), **own}

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

    def _ask(self, verb: str, *arguments: str) -> Outcome:
        python = str(self.bin / "python")
        if self.installer == "pip":
            return self._run([python, "-m", "pip", verb, *arguments])
        return self._run([uv(), "pip", verb, "--python", python, *arguments])

    def _run(self, command: list[str]) -> Outcome:
        done = subprocess.run(
            command,
            env=self.variables(),
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
