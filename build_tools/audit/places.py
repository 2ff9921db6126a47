"""Where a library's loader would look, as names inside the wheel."""

from __future__ import annotations

import posixpath
import re

SYSTEM_MACOS = ("/usr/lib/", "/System/Library/", "/System/iOSSupport/")


def installed(name: str) -> str:
    """Return where a file of the wheel lands, relative to site-packages."""
    return re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)


def resolve(path: str, origin: str, marks: tuple[str, ...]) -> str | None:
    """Resolve a path that starts with a mark (``$ORIGIN``, ``@loader_path``) at folder ``origin``.

    Returns:
        A path relative to site-packages (it may start with ``..``), or ``None`` when the path
        starts with no mark.

    """
    for mark in marks:
        if path == mark or path.startswith(mark + "/"):
            return posixpath.normpath(posixpath.join(origin, path[len(mark) :].lstrip("/")))
    return None


def climbs_out(path: str) -> bool:
    """Say whether a resolved path leaves site-packages."""
    return path == ".." or path.startswith("../")


def system_on_macos(path: str) -> bool:
    """Say whether dyld's shared cache, or the sealed system volume, holds ``path``."""
    normal = posixpath.normpath(path)
    return normal.startswith(SYSTEM_MACOS) or normal == "/usr/lib"
