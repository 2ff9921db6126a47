"""Finished libraries: one folder each, named by everything that went into it, with a manifest.

A folder appears by a rename, and is checked file by file each time that it is taken.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_tools.support import files
from build_tools.support.console import say
from build_tools.support.errors import BuildError
from build_tools.support.flock import locked

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished library, and what lies beside it.

    Attributes:
        folder: Where it lies.
        library: The library's file.
        manifest: What it was made from and by, ``library`` (its ``file`` and ``sha256``), and
            ``files``: SHA-256 of every file in the folder but the manifest.

    """

    folder: Path
    library: Path
    manifest: dict[str, Any]


def key(inputs: dict[str, Any]) -> str:
    """Return the part of a folder's name that changes with any input."""
    return files.digest([json.dumps(inputs, sort_keys=True)])[:16]


def obtain(target: Path, make: Callable[[Path], tuple[Path, dict[str, Any]]]) -> Built:
    """Return the result in ``target``, made where there is none that is whole.

    Args:
        target: A folder whose name says what it holds.
        make: Given an empty folder, puts library and companions into it; returns the library and
            what the manifest says of it. Nothing is kept when it raises.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f"{target.name}.lock"):
        # Left by a run that was killed; its lock is ours now, so nobody is using them.
        for stale in target.parent.glob(f".{target.name}.*"):
            files.remove_tree(stale)
        built = _load(target)
        if built is not None:
            say(f"native library {target.name}: cached")
            return built
        files.remove_tree(target)
        try:
            _make(target, make)
        except OSError as error:
            msg = (
                f"the library could not be kept in {target.parent}: {error}. "
                "Free some room, or choose another folder (--work)."
            )
            raise BuildError(msg) from error
        built = _load(target)
    if built is None:
        msg = f"{target} was changed while it was written; run the build again"
        raise BuildError(msg)
    return built


def _make(target: Path, make: Callable[[Path], tuple[Path, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        stage = Path(folder) / "stage"
        stage.mkdir()
        library, told = make(stage)
        hashes = {
            path.relative_to(stage).as_posix(): files.sha256(path)
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        }
        made = {"file": library.name, "sha256": hashes[library.name]}
        files.write_json(stage / MANIFEST, {**told, "library": made, "files": hashes})
        stage.rename(target)


def _load(target: Path) -> Built | None:
    """Return the result in ``target`` when each of its files is the one that was built."""
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        whole = all(files.sha256(target / n) == h for n, h in manifest["files"].items())
        library = target / manifest["library"]["file"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Built(folder=target, library=library, manifest=manifest) if whole else None
