"""Rebuild a wheel from what its manifest and RECORD say it was made of."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_tools.reproduce.build import ReproduceError
from build_tools.support.console import printable
from build_tools.support.paths import ROOT
from build_tools.support.process import capture
from build_tools.wheel import archives, canonical, fingerprint, manifest

SOURCE_FOLDER = "mfa_wheel"
TOOLCHAINS = {"swift build -c release": "swift", "cc": "cc"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a wheel says about its origin.

    ``sources`` are SHA-256 by path in the repository, of Python modules (from RECORD) and of the
    native sources (from the manifest).
    """

    sources: Mapping[str, str]
    toolchain: str
    compiler: str
    engine: str
    fingerprint: str = ""


def read_claim(wheel: Path) -> Claim:
    """Read a wheel's manifest and its modules; nothing of it is executed.

    Raises:
        UnreadableError: It is no wheel that may be read.
        ReproduceError: It is no wheel of this project, or contradicts itself.

    """
    archive = archives.read(wheel)
    name, entries = printable(wheel.name), archive.entries
    modules = {
        f"{SOURCE_FOLDER}/{file}": hashlib.sha256(entry.content).hexdigest()
        for file, entry in entries.items()
        if file.startswith(f"{manifest.PACKAGE}/") and not file.startswith(manifest.NATIVE)
    }
    if not modules:
        msg = f"{name} does not hold {manifest.PACKAGE}; only wheels of this project can be rebuilt"
        raise ReproduceError(msg)
    try:
        record = entries[canonical.record_name(entries)].content
    except canonical.CanonicalError as error:
        msg = f"{name}: {error}. Get the wheel again."
        raise ReproduceError(msg) from error
    if record != canonical.record(entries):
        msg = f"{name}: its RECORD does not agree with its files. Get the wheel again."
        raise ReproduceError(msg)
    try:
        told = json.loads(archive.text(manifest.MANIFEST) or "{}")
        native = {
            str(file): str(digest)
            for field in ("sources", "overlay")
            for file, digest in told.get(field, {}).items()
        }
        embeds = manifest.MANIFEST in entries
        toolchain = TOOLCHAINS[told["built_by"]] if embeds else "none"
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        msg = f"{name} has no manifest of this project that can be read: {printable(repr(error))}"
        raise ReproduceError(msg) from error
    return Claim(
        sources={**modules, **native},
        toolchain=toolchain,
        compiler=str(told.get("compiler", "")),
        engine=str(told.get("engine", "none")),
        fingerprint=str(told.get("build_fingerprint", "")),
    )


def find_commit(claim: Claim) -> str:
    """Return the newest commit of this clone that has every file the wheel was made of.

    Raises:
        ReproduceError: There is none; the message names what the nearest one lacks.

    """
    known: dict[str, bytes] = {}
    nearest: tuple[int, str, list[str]] | None = None
    for commit in capture(["git", "rev-list", "--all", "--date-order"], cwd=ROOT).splitlines():
        blobs = dict(_blobs(commit))
        other = [
            path
            for path, digest in claim.sources.items()
            if path not in blobs or _sha256(_blob(blobs[path], known)) != digest
        ]
        if claim.fingerprint and _fingerprint(blobs, known) != claim.fingerprint:
            other.append("build_tools/ and its pins")
        if not other:
            return commit
        if nearest is None or len(other) < nearest[0]:
            nearest = (len(other), commit, other)
    if nearest is None:
        msg = "This clone has no commits. Run this in a clone of the project."
        raise ReproduceError(msg)
    count, commit, other = nearest
    msg = (
        f"No commit of this clone has the sources of the wheel. The nearest, {commit[:12]}, differs"
        f" in {count}: {', '.join(sorted(other)[:5])}. Fetch newer commits, or check out the tag."
    )
    raise ReproduceError(msg)


def _fingerprint(blobs: Mapping[str, str], known: dict[str, bytes]) -> str:
    return fingerprint.digest(
        {path: _blob(blob, known) for path, blob in blobs.items() if fingerprint.belongs(path)}
    )


def _blobs(commit: str) -> Iterator[tuple[str, str]]:
    for line in capture(["git", "ls-tree", "-r", commit], cwd=ROOT).splitlines():
        kind, path = line.split("\t", 1)
        yield path, kind.split()[2]


def _blob(blob: str, known: dict[str, bytes]) -> bytes:
    if blob not in known:
        command = ["git", "cat-file", "blob", blob]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        known[blob] = done.stdout
    return known[blob]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
