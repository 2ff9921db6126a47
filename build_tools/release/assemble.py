"""From the files of all build jobs to a folder that can be published, or to a refusal."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from build_tools.release import changelog, files, gpu
from build_tools.release.project import Project
from build_tools.support.errors import ReleaseError
from build_tools.support.files import sha256

SUMS = "SHA256SUMS"
NOTES = "NOTES.md"
DIST, SBOMS = "dist", "sboms"


def require_tag(tag: str, project: Project) -> None:
    """Return when ``tag`` is the tag of the project's version.

    Raises:
        ReleaseError: It is not.

    """
    if tag != project.tag:
        msg = f"the tag is {tag}, but pyproject.toml says {project.version} (tag {project.tag})"
        raise ReleaseError(msg)


def assemble(built: Path, out: Path, project: Project, *, reports: Path | None = None) -> Path:
    """Make the folder ``out`` from the files in ``built``.

    It holds dist/ (what is published), SHA256SUMS, sboms/<wheel>.cdx.json and NOTES.md, and appears
    whole or not at all. ``reports`` holds the self-tests' reports, from which the notes say whether
    a GPU ran the release.

    Raises:
        ReleaseError: The files are not a release (every reason is listed), the CHANGELOG has no
            section of this version, or ``out`` exists.

    """
    if out.exists():
        msg = f"{out} exists; remove it, or name another folder"
        raise ReleaseError(msg)
    wrong = files.problems(built, project)
    if wrong:
        listed = "\n".join(f"  {each}" for each in wrong)
        msg = f"{built} cannot be released as {project.version}:\n{listed}"
        raise ReleaseError(msg)
    text = f"{changelog.notes(project.changelog, project.version)}\n\n{gpu.notes(reports)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=out.parent) as temporary:
        stage = Path(temporary) / out.name
        for name in (DIST, SBOMS):
            (stage / name).mkdir(parents=True)
        for path in files.distributions(built):
            shutil.copyfile(path, stage / DIST / path.name)
            if path.suffix == ".whl":
                _extract_sboms(path, stage / SBOMS)
        (stage / SUMS).write_text(checksums(stage / DIST), encoding="utf-8")
        (stage / NOTES).write_text(_notes(text, stage / SUMS), encoding="utf-8")
        stage.rename(out)
    return out


def checksums(folder: Path) -> str:
    """Return lines as ``sha256sum --check`` reads them."""
    return "".join(f"{sha256(p)}  {p.name}\n" for p in files.distributions(folder))


def _extract_sboms(wheel: Path, folder: Path) -> None:
    for number, (name, content) in enumerate(sorted(files.sboms(wheel).items())):
        suffix = f"-{number}" if number else ""
        ending = "".join(Path(name).suffixes[-2:])
        (folder / f"{wheel.name}{suffix}{ending}").write_bytes(content)


def _notes(text: str, sums: Path) -> str:
    shown = sums.read_text(encoding="utf-8")
    return f"{text}\n\n### Files\n\n```text\n{shown}```\n\nHow to verify them: docs/releasing.md.\n"
