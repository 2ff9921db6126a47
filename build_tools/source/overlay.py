"""The repairs: our own files and small anchored edits, applied to a copy of the pinned source."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from build_tools.support import files, paths
from build_tools.support.errors import OverlayError

FOLDER = paths.ROOT / "swift_pkg" / "overlay"
SCHEMA = 1
DATA = "overlay.toml"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Replace ``anchor``, found exactly ``count`` times, by ``replacement``."""

    anchor: str
    replacement: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Changes to one upstream file, whose bytes before them have the hash ``sha256``."""

    defect: str
    file: str
    sha256: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Embed:
    """An upstream text file that is written into the library as the Swift constant ``constant``."""

    source: str
    sha256: str
    to: str
    constant: str


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file or folder of ours and where it goes.

    A file may take the place of an upstream one, whose hash is then ``replaces``.
    """

    origin: str
    to: str
    replaces: str | None = None


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """All repairs, and the folder that declares them."""

    folder: Path
    copies: tuple[Copy, ...]
    embeds: tuple[Embed, ...]
    edits: tuple[Edit, ...]


def load(folder: Path) -> Overlay:
    """Read ``overlay.toml`` in ``folder``.

    Raises:
        OverlayError: It is missing or malformed.

    """
    path = folder / DATA
    try:
        data: dict[str, Any] = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
        if data["schema"] != SCHEMA:
            msg = f"{path}: schema is {data['schema']!r}, this version reads {SCHEMA}"
            raise OverlayError(msg)
        return Overlay(
            folder=folder,
            copies=tuple(
                Copy(origin=c["from"], to=c["to"], replaces=c.get("replaces"))
                for c in data.get("copy", [])
            ),
            embeds=tuple(Embed(**e) for e in data.get("embed", [])),
            edits=tuple(_edit(e) for e in data.get("edit", [])),
        )
    except OSError as error:
        msg = f"the overlay {path} cannot be read: {error}"
        raise OverlayError(msg) from error
    except (TOMLKitError, UnicodeDecodeError, KeyError, TypeError) as error:
        msg = f"the overlay {path} is malformed: {error!r}"
        raise OverlayError(msg) from error


def own_files(overlay: Overlay) -> dict[str, Path]:
    """Return the files that are copied: path in the source tree to our file."""
    found: dict[str, Path] = {}
    for copy in overlay.copies:
        origin = overlay.folder / copy.origin
        if origin.is_file():
            found[copy.to] = origin
        for path in sorted(origin.rglob("*")):
            if path.is_file():
                found[f"{copy.to}/{path.relative_to(origin).as_posix()}"] = path
    return found


def hashes(overlay: Overlay) -> dict[str, str]:
    """Return SHA-256 of everything that the overlay puts into the build, for the manifest."""
    ours = {DATA: files.sha256(overlay.folder / DATA)}
    return ours | {to: files.sha256(path) for to, path in own_files(overlay).items()}


def problems(overlay: Overlay, root: Path) -> list[str]:
    """Return everything that keeps the overlay from fitting the tree at ``root``."""
    return [*changed_files(overlay, root), *misfits(overlay, root)]


def changed_files(overlay: Overlay, root: Path) -> list[str]:
    """Return a line for each file that is not, byte for byte, the one that was repaired."""
    return [
        f"{name}: its SHA-256 is {actual}, the overlay expects {expected}"
        for name, expected, actual in _hashed(overlay, root)
        if actual not in (expected, "missing")
    ]


def misfits(overlay: Overlay, root: Path) -> list[str]:
    """Return a line for each repair that cannot be made at all."""
    missing = [
        f"{name}: the file is not there"
        for name, _, actual in _hashed(overlay, root)
        if actual == "missing"
    ]
    meant = {copy.to for copy in overlay.copies if copy.replaces is not None}
    taken = [
        f"{to}: upstream has a file of that name"
        for to in [*own_files(overlay), *(embed.to for embed in overlay.embeds)]
        if to not in meant and (root / to).exists()
    ]
    anchors = [
        line
        for edit in overlay.edits
        if (root / edit.file).is_file()
        for line in _edited(edit, (root / edit.file).read_text(encoding="utf-8"))[1]
    ]
    return missing + taken + anchors


def apply(overlay: Overlay, root: Path) -> None:
    """Apply the overlay to the tree at ``root``, which must be a copy.

    Raises:
        OverlayError: It does not fit; the tree is then as it was.

    """
    wrong = problems(overlay, root)
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        msg = (
            f"the repairs in {overlay.folder} do not fit {root}:\n{lines}\n"
            "Adapt them to this source (docs/building.md, 'A new pin'); nothing was built."
        )
        raise OverlayError(msg)
    for edit in overlay.edits:
        path = root / edit.file
        path.write_text(_edited(edit, path.read_text(encoding="utf-8"))[0], encoding="utf-8")
    for to, origin in own_files(overlay).items():
        (root / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, root / to)
    for embed in overlay.embeds:
        text = (root / embed.source).read_text(encoding="utf-8")
        (root / embed.to).parent.mkdir(parents=True, exist_ok=True)
        (root / embed.to).write_text(swift_constant(embed.constant, text), encoding="utf-8")


def accept(overlay: Overlay, root: Path) -> None:
    """Write the hashes of the files below ``root`` into ``overlay.toml``, keeping its comments."""
    path = overlay.folder / DATA
    document: Any = tomlkit.parse(path.read_text(encoding="utf-8"))
    for table in document.get("edit", []):
        table["sha256"] = files.sha256(root / table["file"])
    for table in document.get("embed", []):
        table["sha256"] = files.sha256(root / table["source"])
    for table in document.get("copy", []):
        if "replaces" in table:
            table["replaces"] = files.sha256(root / table["to"])
    files.write_text(path, tomlkit.dumps(document))


def swift_constant(name: str, text: str) -> str:
    """Return Swift source that defines ``name`` as exactly ``text``."""
    fence = "#"
    while f'"""{fence}' in text or f"\\{fence}" in text:
        fence += "#"
    return (
        "// Written by build_tools from the pinned source; not to be edited.\n"
        f'let {name} = {fence}"""\n{text}\n"""{fence}\n'
    )


def _edited(edit: Edit, text: str) -> tuple[str, list[str]]:
    """Return the edited text, and what does not fit."""
    wrong = []
    for change in edit.changes:
        found = text.count(change.anchor)
        if found != change.count:
            shown = change.anchor.strip().splitlines()[0]
            wrong.append(
                f"{edit.file}: the anchor {shown!r} (defect {edit.defect}) was found {found} "
                f"times, not {change.count}"
            )
        text = text.replace(change.anchor, change.replacement)
    return text, wrong


def _hashed(overlay: Overlay, root: Path) -> Iterator[tuple[str, str, str]]:
    expected = [(e.file, e.sha256) for e in overlay.edits]
    expected += [(e.source, e.sha256) for e in overlay.embeds]
    expected += [(c.to, c.replaces) for c in overlay.copies if c.replaces is not None]
    for name, wanted in expected:
        path = root / name
        yield name, wanted, files.sha256(path) if path.is_file() else "missing"


def _edit(data: dict[str, Any]) -> Edit:
    changes = tuple(Change(**change) for change in data["changes"])
    if any(not change.anchor or change.count < 1 for change in changes):
        msg = f"{data['file']}: an anchor is empty or its count is below 1"
        raise OverlayError(msg)
    return Edit(defect=data["defect"], file=data["file"], sha256=data["sha256"], changes=changes)
