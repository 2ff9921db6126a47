"""The files of a release: which there must be, and whether they are of this commit.

Nothing is taken on trust from file names or from the job that made a file: every file's contents
are held against the working tree, and every file passes the audit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from build_tools.audit.auditor import audit
from build_tools.audit.findings import ForeignError
from build_tools.release.project import Project
from build_tools.support.console import printable
from build_tools.support.files import sha256
from build_tools.wheel import archives, fingerprint
from build_tools.wheel.archives import UnreadableError
from build_tools.wheel.manifest import MANIFEST, NATIVE, PACKAGE

MADE_BY_SDIST = ("PKG-INFO", "setup.cfg")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One file that every release has.

    Attributes:
        pattern: How its name goes on after name and version; ``*`` is a number.
        engine: The engine of its library, None where it carries none.

    """

    pattern: str
    engine: str | None = None

    def name(self, project: Project) -> str:
        """Return what it is called in messages."""
        return f"{project.file_stem}{self.pattern}"

    def matches(self, filename: str, project: Project) -> bool:
        """Whether ``filename`` is this file of this version."""
        pattern = re.escape(project.file_stem + self.pattern).replace(r"\*", "[0-9]+")
        return re.fullmatch(pattern, filename) is not None


KINDS = (
    Kind(pattern="-py3-none-macosx_15_0_arm64.whl", engine="metal"),
    Kind(pattern="-py3-none-manylinux_2_*_x86_64.whl", engine="portable"),
    Kind(pattern="-py3-none-manylinux_2_*_aarch64.whl", engine="portable"),
    Kind(pattern="-py3-none-any.whl"),
    Kind(pattern=".tar.gz"),
)


def distributions(folder: Path) -> list[Path]:
    """Return the files in ``folder``, hidden ones apart, by name."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def problems(folder: Path, project: Project) -> list[str]:
    """Return everything for which the files in ``folder`` must not be published.

    Args:
        folder: Holds the wheels and the source distribution, and nothing else.
        project: What they have to be, with the working tree that they have to come from.

    """
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    found = distributions(folder)
    told = []
    for kind in KINDS:
        matching = [path for path in found if kind.matches(path.name, project)]
        if len(matching) != 1:
            told.append(f"{kind.name(project)}: {len(matching) or 'none'} of it instead of one")
    for path in found:
        if not any(kind.matches(path.name, project) for kind in KINDS):
            told.append(f"{printable(path.name)}: not a file of release {project.version}")
        told += [f"{printable(path.name)}: {problem}" for problem in of_file(path, project)]
    return told


def of_file(path: Path, project: Project) -> Iterator[str]:
    """Yield what is wrong with one file, whatever it is called."""
    if path.suffix != ".whl" and not path.name.endswith(".tar.gz"):
        return
    try:
        check = _wheel if path.suffix == ".whl" else _sdist
        yield from map(printable, check(path, project))
        yield from (f"audit: {f.code}: {f.file}: {f.what}" for f in audit(path).findings)
    except (UnreadableError, ForeignError, ValueError) as error:
        yield f"it cannot be checked: {error}"


def manifest(wheel: Path) -> dict[str, Any] | None:
    """Return the manifest of the library in ``wheel``, or None where it carries no library."""
    archive = archives.read(wheel)
    if MANIFEST not in archive.entries:
        return None
    found: dict[str, Any] = json.loads(archive.text(MANIFEST))
    return found


def sboms(wheel: Path) -> dict[str, bytes]:
    """Return the SBOMs in ``wheel``: contents by file name."""
    return {
        PurePosixPath(name).name: entry.content
        for name, entry in archives.read(wheel).entries.items()
        if ".dist-info/sboms/" in name
    }


def _wheel(path: Path, project: Project) -> Iterator[str]:
    told = manifest(path)
    kind = next((each for each in KINDS if each.matches(path.name, project)), None)
    engine = told.get("engine") if told else None
    if kind is None or engine != kind.engine:
        wanted = kind.engine if kind else "none that is ever published"
        yield f"its engine is {engine or 'none'}, it has to be {wanted or 'none'}"
    if told is not None:
        yield from _manifest(told, project)
    tree = project.root / "mfa_wheel"
    held = {
        name: entry.content
        for name, entry in archives.read(path).entries.items()
        if name.startswith(f"{PACKAGE}/") and not name.startswith(f"{NATIVE}/")
    }
    yield from _compare(held, tree)
    for source in sorted((tree / PACKAGE).rglob("*.py")):
        if source.relative_to(tree).as_posix() not in held:
            yield f"lacks {source.relative_to(tree).as_posix()}"


def _manifest(told: dict[str, Any], project: Project) -> Iterator[str]:
    version = told.get("package", {}).get("version")
    if version != project.version:
        yield f"its manifest is of version {version}, the project is {project.version}"
    if told.get("build_fingerprint") != fingerprint.read(project.root):
        yield "it was built by other build tools or from another pyproject.toml"
    for name, digest in told.get("sources", {}).items():
        source = project.root / name
        if not source.is_file() or sha256(source) != digest:
            yield f"its library was built from another {name}"


def _sdist(path: Path, project: Project) -> Iterator[str]:
    names = {
        name.partition("/")[2]: entry.content for name, entry in archives.read(path).entries.items()
    }
    yield from _compare(
        {
            name: content
            for name, content in names.items()
            if name not in MADE_BY_SDIST and ".egg-info/" not in name
        },
        project.root,
    )


def _compare(held: dict[str, bytes], tree: Path) -> Iterator[str]:
    for name, content in sorted(held.items()):
        path = tree / name
        if not path.is_file():
            yield f"holds {name}, which the working tree does not"
        elif path.read_bytes() != content:
            yield f"{name} is not the working tree's"
