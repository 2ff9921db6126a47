"""The files of a release: which there must be, and whether they are of this commit.

Nothing is taken on trust from file names or from the job that made a file: every file's contents
are held against the working tree, and every wheel passes the strict audit.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from build_tools.audit.auditor import audit
from build_tools.audit.findings import Severity, UnreadableWheelError
from build_tools.audit.policy import strict
from build_tools.wheel import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from build_tools.release.project import Project

PACKAGE = "qwen_mfa"
MANIFEST = f"{PACKAGE}/_native/manifest.json"
BUILT = (f"{PACKAGE}/_native/",)  # made by the build; its manifest says from what
MADE_BY_SDIST = ("PKG-INFO", "setup.cfg")
UNREADABLE = (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError, ValueError)


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
            told.append(f"{path.name}: not a file of release {project.version}")
        told += [f"{path.name}: {problem}" for problem in of_file(path, project)]
    return told


def of_file(path: Path, project: Project) -> Iterator[str]:
    """Yield what is wrong with one file, whatever it is called."""
    try:
        if path.suffix == ".whl":
            yield from _wheel(path, project)
        elif path.name.endswith(".tar.gz"):
            yield from _sdist(path, project)
    except UNREADABLE as error:
        yield f"cannot be read: {error}"


def manifest(wheel: Path) -> dict[str, Any] | None:
    """Return the manifest of the library in ``wheel``, or None where it carries no library."""
    with zipfile.ZipFile(wheel) as archive:
        if MANIFEST not in archive.namelist():
            return None
        found: dict[str, Any] = json.loads(archive.read(MANIFEST))
        return found


def sboms(wheel: Path) -> dict[str, bytes]:
    """Return the SBOMs in ``wheel``: contents by file name."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            PurePosixPath(name).name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/sboms/" in name
        }


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at ``path``, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wheel(path: Path, project: Project) -> Iterator[str]:
    told = manifest(path)
    kind = next((each for each in KINDS if each.matches(path.name, project)), None)
    engine = told.get("engine") if told else None
    if kind is None or engine != kind.engine:
        wanted = kind.engine if kind else "none that is ever published"
        yield f"its engine is {engine or 'none'}, it has to be {wanted or 'none'}"
    if told is not None:
        yield from _manifest(told, project)
    with zipfile.ZipFile(path) as archive:
        yield from _metadata(archive, project)
        yield from _same_sources(archive, project.root / "mfa_wheel")
    try:
        report = audit(path, strict())
    except UnreadableWheelError as error:
        yield str(error)
        return
    for finding in report.findings:
        if finding.severity is not Severity.NOTE:
            yield f"audit: {finding.code}: {finding.file}: {finding.what}"


def _manifest(told: dict[str, Any], project: Project) -> Iterator[str]:
    version = told.get("package", {}).get("version")
    if version != project.version:
        yield f"its manifest is of version {version}, the project is {project.version}"
    if told.get("recipe") != fingerprint.read(project.root):
        yield "it was built by other build tools or from another pyproject.toml"
    for name, digest in told.get("sources", {}).items():
        source = project.root / name
        if not source.is_file() or sha256(source) != digest:
            yield f"its library was built from another {name}"


def _metadata(archive: zipfile.ZipFile, project: Project) -> Iterator[str]:
    name = f"{project.file_stem}.dist-info/METADATA"
    lines = archive.read(name).decode("utf-8").split("\n\n", 1)[0].splitlines()
    if f"Version: {project.version}" not in lines:
        yield f"its METADATA is not of version {project.version}"


def _same_sources(archive: zipfile.ZipFile, tree: Path) -> Iterator[str]:
    held = {
        name: archive.read(name)
        for name in archive.namelist()
        if name.startswith(f"{PACKAGE}/") and not name.startswith(BUILT)
    }
    yield from _compare(held, tree)
    for path in sorted((tree / PACKAGE).rglob("*.py")):
        if path.relative_to(tree).as_posix() not in held:
            yield f"lacks {path.relative_to(tree).as_posix()}"


def _sdist(path: Path, project: Project) -> Iterator[str]:
    held: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            top, _, name = member.name.partition("/")
            if top != project.file_stem:
                yield f"{member.name} is outside {project.file_stem}/"
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is not None and name not in MADE_BY_SDIST and ".egg-info/" not in name:
                held[name] = stream.read()
    yield from _compare(held, project.root)
    if "pyproject.toml" not in held:
        yield "lacks pyproject.toml"


def _compare(held: dict[str, bytes], tree: Path) -> Iterator[str]:
    for name, content in sorted(held.items()):
        path = tree / name
        if not path.is_file():
            yield f"holds {name}, which the working tree does not"
        elif path.read_bytes() != content:
            yield f"{name} is not the working tree's"
