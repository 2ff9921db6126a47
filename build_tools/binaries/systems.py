"""What a library may expect of the system that a wheel's tag names, and nothing beyond."""

from __future__ import annotations

import posixpath
import re

# glibc's own libraries: the engine is C, and every other library would have to be in the wheel.
_GLIBC = re.compile(
    r"lib(c\.so\.6|m\.so\.6|(pthread|dl)\.so\.[02]|rt\.so\.1)|ld-linux[\w.-]*\.so\.\d"
)
_GLIBC_VERSION = re.compile(r"GLIBC_(\d+)\.(\d+)(\.\d+)?")
_MACOS = ("/usr/lib/", "/System/Library/")


def on_linux(library: str) -> bool:
    """Say whether every glibc has ``library``, a name as in DT_NEEDED."""
    return _GLIBC.fullmatch(library) is not None


def on_macos(path: str) -> bool:
    """Say whether dyld's shared cache, or the sealed system volume, holds ``path``."""
    return posixpath.normpath(path).startswith(_MACOS) or posixpath.normpath(path) == "/usr/lib"


def glibc(version: str) -> tuple[int, int] | None:
    """Return the glibc that has the symbol version ``version``; ``None``: no glibc's own."""
    if version == "GLIBC_ABI_DT_RELR":  # a promise of glibc 2.36 under a name of its own
        return (2, 36)
    match = _GLIBC_VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else None
