"""Git's own hash of a folder, computed from the files on disk without git.

The tree hash in the lock then answers for every byte that is built, long after the fetch.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from build_tools.source.git import EXECUTABLE, FILE, GITLINK, MAX_DEPTH, SYMLINK
from build_tools.support.errors import SourceError

DIRECTORY = "40000"


def tree_hash(root: Path, *, gitlinks: Mapping[str, str], listing: dict[str, str]) -> str:
    """Return the git tree hash of ``root``.

    Args:
        root: The folder; no ``.git`` in it is skipped or excused.
        gitlinks: Path of each submodule below ``root`` and the commit that stands for it; such a
            folder is not entered.
        listing: Receives, for every file, its path and ``"mode hash"``.

    Raises:
        SourceError: It is deeper than any source that is accepted, or holds what is no file.

    """
    return _hash_folder(root, "", gitlinks, listing)


def _hash_folder(
    folder: Path, prefix: str, gitlinks: Mapping[str, str], listing: dict[str, str]
) -> str:
    if prefix.count("/") > MAX_DEPTH:
        msg = (
            f"{folder} lies deeper than any source that is accepted; remove it, or fetch --refresh"
        )
        raise SourceError(msg)
    rows: list[tuple[bytes, str, str, str]] = []
    for item in folder.iterdir():
        path = f"{prefix}{item.name}"
        if path in gitlinks and not item.is_symlink():
            mode, oid = GITLINK, gitlinks[path]
        elif item.is_dir() and not item.is_symlink():
            mode, oid = DIRECTORY, _hash_folder(item, f"{path}/", gitlinks, listing)
        else:
            mode, oid = _hash_file(item)
            listing[path] = f"{mode} {oid}"
        # Git sorts a folder as if its name ended with a slash.
        key = os.fsencode(item.name) + (b"/" if mode == DIRECTORY else b"")
        rows.append((key, mode, item.name, oid))
    content = b"".join(
        f"{mode} ".encode() + os.fsencode(name) + b"\0" + bytes.fromhex(oid)
        for _, mode, name, oid in sorted(rows)
    )
    return _object_hash("tree", content)


def _hash_file(path: Path) -> tuple[str, str]:
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return SYMLINK, _object_hash("blob", os.fsencode(path.readlink()))
    if not stat.S_ISREG(facts.st_mode):  # a FIFO would never end
        msg = f"{path} is neither file, folder nor link; remove it, or fetch --refresh"
        raise SourceError(msg)
    mode = EXECUTABLE if facts.st_mode & stat.S_IXUSR else FILE
    return mode, _object_hash("blob", path.read_bytes())


def _object_hash(kind: str, content: bytes) -> str:
    # SHA-1 because that is what git's object names are; SHA-256 covers what matters beside it.
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()  # noqa: S324
