"""One digest of everything but the sources that shapes a wheel: the build tools and their pins."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUFFIXES = (".py", ".toml", ".json")
FILES = ("pyproject.toml", "setup.py")


def belongs(path: str) -> bool:
    """Say whether a file, by its path in the repository, is part of the recipe."""
    return path in FILES or (path.startswith("build_tools/") and path.endswith(SUFFIXES))


def digest(hashes: Mapping[str, str]) -> str:
    """Return the recipe's digest from the SHA-256 of files by path; other files do not matter."""
    lines = (f"{value}  {path}\n" for path, value in sorted(hashes.items()) if belongs(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(root: Path) -> str:
    """Return the digest of the recipe in the folder ``root``."""
    files = [root / name for name in FILES]
    files += [path for suffix in SUFFIXES for path in (root / "build_tools").rglob(f"*{suffix}")]
    return digest(
        {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
    )
