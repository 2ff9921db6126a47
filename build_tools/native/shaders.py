"""Shader packs: compiled Metal libraries that a wheel carries beside its own, found by key.

``index.json`` is what the library itself reads (docs/building.md); its ``source`` part says what
the pack was made from. A *record* is the folder of sources that a pack is made of.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_tools.support import files
from build_tools.support.errors import ShaderError

FORMAT = 1
INDEX, RECORD = "index.json", "sources.json"
OLDEST_OS = (15, 0)
VARIANTS = ("upstream", "plain")
MAGIC = b"MTLB"  # how every metallib begins
_KEY = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*\.metallib")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One recorded source.

    Attributes:
        key: What the library asks for it by.
        family: GPU family: 8 for all before Apple9, else 9.
        input: ``"bf16"`` or ``"fp16"``.
        intermediate: ``"fp32"``, or ``"fp16"`` for the low class.
        variant: ``"upstream"`` or ``"plain"``.
        lengths: Lengths, Sq = Skv, that lead to it.
        sha256: Of the text, options apart.

    """

    key: str
    family: int
    input: str
    intermediate: str
    variant: str
    lengths: tuple[int, ...]
    sha256: str

    @property
    def purpose(self) -> str:
        """What it computes, whichever the variant: one of them is enough."""
        lengths = "/".join(map(str, self.lengths))
        return f"Apple{self.family} {self.input}/{self.intermediate} at {lengths}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Sources that are to be compiled: ``sources.json`` and one ``<key>.metal`` each."""

    folder: Path
    commits: Mapping[str, str]
    options: str
    sources: tuple[Source, ...]

    def text(self, source: Source) -> str:
        """Return a source's text, verified."""
        path = self.folder / f"{source.key}.metal"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{path} cannot be read ({error}); record the sources again"
            raise ShaderError(msg) from error
        if key_of(self.options, text) != source.key:
            msg = f"{path} is not the source that its name says; record the sources again"
            raise ShaderError(msg)
        return text


def key_of(options: str, text: str) -> str:
    """Return the key of a source compiled with ``options``, stated as docs/building.md says."""
    return hashlib.sha256(f"{options}\n{text}".encode()).hexdigest()


def write_record(
    folder: Path, *, commits: Mapping[str, str], options: str, sources: Mapping[Source, str]
) -> Record:
    """Write a record to ``folder``, which must not exist."""
    if folder.exists():
        msg = f"{folder} exists; remove it, or name another folder"
        raise ShaderError(msg)
    partial = folder.with_name(f".{folder.name}.partial")
    files.remove_tree(partial)
    partial.mkdir(parents=True)
    for source, text in sources.items():
        files.write_text(partial / f"{source.key}.metal", text)
    content = {
        "format": FORMAT,
        "commits": dict(commits),
        "options": options,
        "sources": [asdict(source) for source in sources],
    }
    files.write_json(partial / RECORD, content)
    partial.rename(folder)
    return load_record(folder)


def load_record(folder: Path) -> Record:
    """Read and verify a record.

    Raises:
        ShaderError: It is missing, damaged or of another format.

    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            msg = f"{path} has format {content['format']!r}, this version reads {FORMAT}"
            raise ShaderError(msg)
        sources = tuple(
            Source(**{**entry, "lengths": tuple(entry["lengths"])}) for entry in content["sources"]
        )
        record = Record(
            folder=folder,
            commits=dict(content["commits"]),
            options=str(content["options"]),
            sources=sources,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no record of shader sources ({error!r}); make one: shaders record"
        raise ShaderError(msg) from error
    for source in record.sources:
        record.text(source)
    return record


def problems(
    index: object, hashes: Mapping[str, str], *, oldest: tuple[int, int] = OLDEST_OS
) -> Iterator[str]:
    """Yield what is wrong with a pack.

    Args:
        index: Its parsed ``index.json``.
        hashes: SHA-256 of every other file in its folder, by name.
        oldest: Every library must load on this macOS.

    """
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        yield f"{INDEX} is not of format {FORMAT}"
        return
    libraries = index.get("libraries")
    if not isinstance(libraries, dict) or not libraries:
        yield f"{INDEX} names no libraries"
        return
    named = set()
    for key, entry in libraries.items():
        if not isinstance(entry, dict):
            yield f"{key[:12]}: its entry is not a table"
            continue
        named.add(str(entry.get("file")))
        yield from (f"{key[:12]}: {text}" for text in _entry(key, entry, hashes, oldest))
    for name in sorted(set(hashes) - named - {INDEX}):
        yield f"{name} is in no entry"


def _entry(
    key: str, entry: Mapping[str, Any], hashes: Mapping[str, str], oldest: tuple[int, int]
) -> Iterator[str]:
    name = entry.get("file")
    if not _KEY.fullmatch(key):
        yield "its key is not a SHA-256 in lower case"
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        yield f"{name!r} is not a plain name of a metallib"
    elif name not in hashes:
        yield f"{name} is missing"
    elif hashes[name] != entry.get("sha256"):
        yield f"{name} has another SHA-256"
    if entry.get("variant") not in VARIANTS:
        yield f"its variant {entry.get('variant')!r} is none of {', '.join(VARIANTS)}"
    if not entry.get("compiler"):
        yield "it does not say what compiled it"
    system = _VERSION.fullmatch(str(entry.get("minimum_os")))
    if system is None:
        yield f"its minimum_os {entry.get('minimum_os')!r} is not like 15.0"
    elif (int(system[1]), int(system[2])) > oldest:
        yield f"it needs macOS {system[0]}, and {oldest[0]}.{oldest[1]} must do"


def load_pack(folder: Path) -> dict[str, Any]:
    """Read a pack and verify it against itself.

    Raises:
        ShaderError: With everything that is wrong.

    """
    path = folder / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        hashes = {item.name: files.sha256(item) for item in folder.iterdir() if item.name != INDEX}
        strange = [name for name in sorted(hashes) if not _is_library(folder / name)]
        found = [*problems(index, hashes), *(f"{name} is not a metallib" for name in strange)]
    except (OSError, ValueError) as error:
        msg = f"{folder} is no shader pack ({error})"
        raise ShaderError(msg) from error
    if found:
        lines = "".join(f"\n  {text}" for text in found)
        msg = f"the shader pack {folder} cannot be used:{lines}\nMake it again: shaders pack"
        raise ShaderError(msg)
    return index


def _is_library(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def uncovered(libraries: Mapping[str, Any], wanted: tuple[Source, ...]) -> list[str]:
    """Return the purposes of ``wanted`` for which a pack has neither variant."""
    purposes = dict.fromkeys(source.purpose for source in wanted)
    covered = {source.purpose for source in wanted if source.key in libraries}
    return [purpose for purpose in purposes if purpose not in covered]


def embed(packs: tuple[tuple[Path, str], ...], target: Path) -> None:
    """Join ``packs`` into the one folder ``target`` that the library looks into.

    Args:
        packs: Folders, each with the SHA-256 that the lock gives for its ``index.json``.
        target: The folder ``shaders`` beside the library.

    Raises:
        ShaderError: A pack is damaged or another one, or two name one key differently.

    """
    joined: dict[str, Any] = {"format": FORMAT, "source": {"packs": []}, "libraries": {}}
    target.mkdir(parents=True)
    for folder, digest in packs:
        index = load_pack(folder)
        if files.sha256(folder / INDEX) != digest:
            msg = f"{folder / INDEX} is not the pack that the lock names (its SHA-256 differs)"
            raise ShaderError(msg)
        joined["source"]["packs"].append(index.get("source", {}))
        for key, entry in index["libraries"].items():
            known = joined["libraries"].setdefault(key, entry)
            if known["file"] != entry["file"] or known["sha256"] != entry["sha256"]:
                msg = f"two packs of the lock have different libraries for {key}"
                raise ShaderError(msg)
            shutil.copyfile(folder / entry["file"], target / entry["file"])
    files.write_json(target / INDEX, joined)
    load_pack(target)
