"""Rebuild a wheel from what its manifest and RECORD say it was made of."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from build_tools.audit.archive import ZIP_ERRORS
from build_tools.audit.auditor import audit
from build_tools.reproduce.build import ReproduceError
from build_tools.support.paths import ROOT
from build_tools.support.process import capture
from build_tools.wheel import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PACKAGE = "qwen_mfa"
MANIFEST = f"{PACKAGE}/_native/manifest.json"
SOURCE_FOLDER = "mfa_wheel"
TOOLCHAINS = {"swift build -c release": "swift", "cc": "cc"}
LARGEST = 64 * 1024 * 1024


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
    recipe: str = ""


def read_claim(wheel: Path) -> Claim:
    """Read a wheel's manifest and RECORD; nothing of it is executed.

    Raises:
        UnreadableWheelError: It is no zip file.
        ReproduceError: It is no wheel of this project, or contradicts itself.

    """
    broken = [each for each in audit(wheel).findings if each.code.startswith(("zip-", "record-"))]
    if broken:
        msg = f"{wheel.name}: {broken[0].file}: {broken[0].what}. Get the wheel again."
        raise ReproduceError(msg)
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            record = next(name for name in names if name.endswith(".dist-info/RECORD"))
            rows = list(csv.reader(io.StringIO(archive.read(record).decode("utf-8"))))
            manifest: dict[str, Any] = (
                json.loads(archive.read(MANIFEST)) if MANIFEST in names else {}
            )
            modules = {
                f"{SOURCE_FOLDER}/{name}": hashlib.sha256(archive.read(name)).hexdigest()
                for name, *_ in rows
                if name.startswith(f"{PACKAGE}/") and "/_native/" not in name
            }
        native = {
            str(name): str(digest)
            for field in ("sources", "overlay")
            for name, digest in manifest.get(field, {}).items()
        }
        toolchain = TOOLCHAINS[manifest["built_by"]] if manifest else "none"
    except (*ZIP_ERRORS, StopIteration, KeyError, AttributeError, TypeError) as error:
        msg = f"{wheel.name} has no manifest of this project that can be read: {error!r}"
        raise ReproduceError(msg) from error
    if not modules:
        msg = f"{wheel.name} does not hold {PACKAGE}; only wheels of this project can be rebuilt"
        raise ReproduceError(msg)
    return Claim(
        sources={**modules, **native},
        toolchain=toolchain,
        compiler=str(manifest.get("compiler", "")),
        engine=str(manifest.get("engine", "none")),
        recipe=str(manifest.get("recipe", "")),
    )


def find_commit(claim: Claim) -> str:
    """Return the newest commit of this clone that has every file the wheel was made of.

    Raises:
        ReproduceError: There is none; the message names what the nearest one lacks.

    """
    known: dict[str, str] = {}
    nearest: tuple[int, str, list[str]] | None = None
    for commit in capture(["git", "rev-list", "--all", "--date-order"], cwd=ROOT).splitlines():
        blobs = dict(_blobs(commit))
        other = [
            path
            for path, digest in claim.sources.items()
            if path not in blobs or _sha256(blobs[path], known) != digest
        ]
        if claim.recipe and _recipe(blobs, known) != claim.recipe:
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


def _recipe(blobs: Mapping[str, str], known: dict[str, str]) -> str:
    return fingerprint.digest(
        {path: _sha256(blob, known) for path, blob in blobs.items() if fingerprint.belongs(path)}
    )


def _blobs(commit: str) -> Iterator[tuple[str, str]]:
    for line in capture(["git", "ls-tree", "-r", commit], cwd=ROOT).splitlines():
        kind, path = line.split("\t", 1)
        yield path, kind.split()[2]


def _sha256(blob: str, known: dict[str, str]) -> str:
    if blob not in known:
        done = subprocess.run(
            ["git", "cat-file", "blob", blob], cwd=ROOT, capture_output=True, check=True
        )
        known[blob] = hashlib.sha256(done.stdout).hexdigest()
    return known[blob]
