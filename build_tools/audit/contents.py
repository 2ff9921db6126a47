"""The files of an archive: all that must be there, nothing else, agreeing with each other."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from build_tools.audit.findings import Finding, found
from build_tools.audit.metadata import Identity
from build_tools.binaries import elf, macho
from build_tools.binaries.build_paths import build_paths
from build_tools.native import shaders
from build_tools.wheel import canonical, manifest, sbom
from build_tools.wheel.archives import Archive

MODULE = re.compile(rf"{manifest.PACKAGE}/(\w+/)*\w+\.py")
LIBRARY = f"{manifest.NATIVE}/libMFAFFI."
# What METADATA says after its fields is prose, in which paths are examples.
PROSE = "/METADATA"
SDIST_FILES = ("LICENSE", "PKG-INFO", "pyproject.toml", "setup.py", "swift_pkg/Package.swift")
SDIST_FOLDERS = ("build_tools", "mfa_wheel/qwen_mfa", "swift_pkg/Sources", "requirements")


def check_wheel(archive: Archive, identity: Identity) -> Iterator[Finding]:
    """Check the list of files, RECORD, the manifest, the SBOM and the shader packs."""
    info, entries = identity.info, archive.entries
    facts = _document(archive.text(manifest.MANIFEST))
    expected = {f"{manifest.PACKAGE}/__init__.py", f"{manifest.PACKAGE}/py.typed"}
    expected |= {manifest.DECLARATIONS, f"{info}/METADATA", f"{info}/RECORD", f"{info}/WHEEL"}
    expected |= {f"{info}/{name}" for name in ("entry_points.txt", "top_level.txt")}
    expected.add(f"{info}/licenses/LICENSE")
    if identity.platform != "any":
        expected |= {manifest.MANIFEST, f"{info}/sboms/{sbom.NAME}"}
        expected |= {f"{manifest.NATIVE}/{name}" for name in _hashes(facts)}
    yield from _listed(archive, expected)
    if f"{info}/RECORD" in entries:
        yield from _record(archive, f"{info}/RECORD")
    if identity.platform != "any":
        yield from _manifest(archive, identity, facts)
        yield from _sbom(archive, f"{info}/sboms/{sbom.NAME}", facts)
    yield from _packs(archive)
    for name, entry in entries.items():
        if name.startswith((f"{manifest.NATIVE}/", f"{info}/")) and not name.endswith(PROSE):
            paths = build_paths(entry.content)
            if paths:
                yield found("build-path", name, f"it names {paths}")


def _listed(archive: Archive, expected: set[str]) -> Iterator[Finding]:
    entries = archive.entries
    for name in sorted(expected - entries.keys()):
        yield found("file-missing", name, "it is not there")
    for name in sorted(entries.keys() - expected):
        if not MODULE.fullmatch(name) or name.startswith(f"{manifest.NATIVE}/"):
            yield found("file-unexpected", name, "it is there")
    for name, entry in entries.items():
        # One library: what the manifest names beside it are texts, resources and shader packs.
        head = entry.content[:8]
        if (elf.is_elf(head) or macho.is_macho(head)) and not name.startswith(LIBRARY):
            yield found("file-unexpected", name, "it is native code, and not the library")


def check_sdist(archive: Archive, identity: Identity) -> Iterator[Finding]:
    """Check that the files to build a wheel are there, in one folder."""
    names = archive.entries.keys()
    top = f"{identity.stem}/"
    for name in sorted(names):
        if not name.startswith(top):
            yield found("file-unexpected", name, f"it is outside of {top}")
    for name in SDIST_FILES:
        if top + name not in names:
            yield found("file-missing", top + name, "it is not there")
    for folder in SDIST_FOLDERS:
        if not any(name.startswith(f"{top}{folder}/") for name in names):
            yield found("file-missing", f"{top}{folder}/", "nothing is in it")


def _record(archive: Archive, name: str) -> Iterator[Finding]:
    try:
        wanted = canonical.record(archive.entries).splitlines()
    except canonical.CanonicalError as error:
        yield found("record", name, str(error))
        return
    held = archive.entries[name].content.splitlines()
    for line in sorted(set(held) ^ set(wanted)):
        which = "says" if line in set(held) else "has to say"
        yield found("record", name, f"it {which} {line.decode('utf-8', 'backslashreplace')}")
    if len(held) != len(set(held)):
        yield found("record", name, "it names a file twice")


def _document(text: str) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else, which has its finding by that."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(facts: Mapping[str, Any], field: str) -> dict[str, str]:
    value = facts.get(field)
    return {name: str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    return {posixpath.normpath(name): text for name, text in _table(facts, "files").items()}


def _manifest(archive: Archive, identity: Identity, facts: dict[str, Any]) -> Iterator[Finding]:
    name = manifest.MANIFEST
    wanted = {
        "schema": manifest.SCHEMA,
        "package": {"name": "qwen-mfa", "version": identity.version},
        "platform_tag": identity.platform,
    }
    for field, value in wanted.items():
        if facts.get(field) != value:
            what = f"{field} is {facts.get(field)!r}, it has to be {value!r}"
            yield found("manifest", name, what)
    for field in ("engine", "built_by", "compiler", "flags", "build_fingerprint"):
        if facts.get(field) in (None, ""):
            yield found("manifest", name, f"it does not say {field}")
    hashes = _hashes(facts)
    for file, digest in hashes.items():
        entry = archive.entries.get(f"{manifest.NATIVE}/{file}")
        if entry is not None and hashlib.sha256(entry.content).hexdigest() != digest:
            yield found("manifest", name, f"{file} has another SHA-256 than it says")
    library = _table(facts, "library")
    if hashes.get(library.get("file", "")) != library.get("sha256", "none"):
        yield found("manifest", name, f"library is {library}, which is none of its files")


def _sbom(archive: Archive, name: str, facts: dict[str, Any]) -> Iterator[Finding]:
    text = archive.text(name)
    problem = sbom.schema_problem(text)
    if problem:
        yield found("sbom", name, problem)
        return
    document = json.loads(text)
    held = {
        each["name"]: {h["content"] for h in each.get("hashes", [])}
        for each in document.get("components", [])
        if each["type"] == "file"
    }
    library = _table(facts, "library")
    wanted = {f"{manifest.NATIVE}/{library.get('file')}": library.get("sha256", "")}
    wanted |= {**_table(facts, "sources"), **_table(facts, "overlay")}
    for file in sorted(held.keys() | wanted.keys()):
        if held.get(file) != {wanted.get(file)}:
            yield found("sbom", name, f"{file} is not there as the manifest has it")


def _packs(archive: Archive) -> Iterator[Finding]:
    folder = f"{manifest.NATIVE}/shaders/"
    inside = {name for name in archive.entries if name.startswith(folder)}
    if not inside:
        return
    index = folder + shaders.INDEX
    hashes = {
        name.removeprefix(folder): hashlib.sha256(archive.entries[name].content).hexdigest()
        for name in inside - {index}
    }
    for problem in shaders.problems(_document(archive.text(index)), hashes):
        yield found("shader-pack", index, problem)
