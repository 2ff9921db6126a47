"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path``, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp's mode is 0600; what we write is meant to be read like any other file.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as sorted, indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def remove_tree(path: Path) -> None:
    """Remove a folder, read-only parts included; nothing happens when it is not there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        # Not by recursion, so that a tree of any depth can go.
        folders = [str(path)]
        for folder in folders:
            Path(folder).chmod(0o700)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        Path(entry.path).unlink()
        for folder in reversed(folders):
            Path(folder).rmdir()


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over ``parts``, each prefixed by its length so that no two lists collide."""
    result = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        result.update(f"{len(encoded)}:".encode())
        result.update(encoded)
    return result.hexdigest()
