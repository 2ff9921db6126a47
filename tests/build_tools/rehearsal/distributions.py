"""The files of a release as this machine can make them, and what users need beside them."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import tomlkit
from packaging.requirements import Requirement
from packaging.version import Version

from build_tools.release import files
from build_tools.support import process

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from build_tools.release.project import Project

NOT_COPIED = (".git", ".venv*", "build", "dist", ".build", ".cache", "__pycache__", "*_cache")


def build(root: Path, out: Path, what: list[str], native: str) -> Path:
    """Build one distribution as any user's front end does; return its path.

    Args:
        root: The project.
        out: Folder for the distribution, and nothing else.
        what: Options of `build`: which distribution, and whether it is isolated.
        native: The toolchain of its library.

    """
    env = {
        **os.environ,
        "PIP_CONSTRAINT": str(root / "requirements" / "constraints.txt"),
        "QWEN_MFA_NATIVE": native,
    }
    command = [sys.executable, "-m", "build", *what, "--outdir", str(out), str(root)]
    process.run(command, cwd=root, env=env)
    (made,) = files.distributions(out)
    return made


def copy(subject: Project, tree: Path) -> None:
    """Copy the working tree: its own build folder may be in use."""
    shutil.copytree(subject.root, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))


def neighbours(version: str) -> tuple[str, str]:
    """Return a version just below and one just above ``version``."""
    major, minor, patch = (*Version(version).release, 0, 0)[:3]
    if patch:
        below = f"{major}.{minor}.{patch - 1}"
    elif minor:
        below = f"{major}.{minor - 1}.0"
    elif major:
        below = f"{major - 1}.0.0"
    else:
        below = "0.0.0.dev0"
    return below, f"{major}.{minor}.{patch + 1}"


def build_neighbour(subject: Project, version: str, work: Path, extra: str = "") -> Path:
    """Build the MLX-only wheel of the same sources, and the module ``extra``, as ``version``."""
    tree = work / "tree"
    copy(subject, tree)
    path = tree / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    changed = text.replace(f'version = "{subject.version}"', f'version = "{version}"', 1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    if extra:
        (tree / "mfa_wheel" / "qwen_mfa" / extra).write_text('"""Gone now."""\n', encoding="utf-8")
    return build(tree, work / "out", ["--wheel"], "none")


def mirror(folder: Path, subject: Project, pythons: Iterable[Path]) -> None:
    """Copy everything that users need beside us from the machine's own index into ``folder``."""
    text = (subject.root / "pyproject.toml").read_text(encoding="utf-8")
    data: dict[str, Any] = tomlkit.parse(text).unwrap()
    wanted = [
        need
        for need in data["build-system"]["requires"]
        if (marker := Requirement(need).marker) is None or marker.evaluate()
    ]
    for python in pythons:
        command = [
            str(python), "-m", "pip", "download", "--quiet", "--only-binary", ":all:",
            "--dest", str(folder), "mlx[cpu]>=0.32" if sys.platform == "linux" else "mlx>=0.32",
            "cffi>=1.17", *wanted,
        ]  # fmt: skip
        process.run(command)
