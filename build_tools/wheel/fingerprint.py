"""One digest of everything but the sources that shapes a wheel's bytes: build tools and pins.

What lies above ``wheel`` (audit, reproduction, releases, commands) may refuse a wheel but not
change it; imports run one way, which a test holds, so the folders below are all there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from build_tools.support.toml import tomllib

FOLDERS = tuple(f"build_tools/{n}/" for n in ("support", "binaries", "source", "native", "wheel"))
SUFFIXES = (".py", ".toml", ".json")
PROJECT = "pyproject.toml"
FILES = (PROJECT, "setup.py")
# Of pyproject.toml what setuptools reads: the settings of linters do not shape a wheel.
TABLES = ("build-system", "project", "setuptools")


def belongs(path: str) -> bool:
    """Say whether a file, by its path in the repository, shapes the wheel."""
    return path in FILES or (path.startswith(FOLDERS) and path.endswith(SUFFIXES))


def digest(contents: Mapping[str, bytes]) -> str:
    """Return the digest of files by path; those that shape nothing do not matter."""
    result = hashlib.sha256()
    for path, content in sorted(contents.items()):
        if belongs(path):
            shaping = _tables(content) if path == PROJECT else content
            result.update(f"{hashlib.sha256(shaping).hexdigest()}  {path}\n".encode())
    return result.hexdigest()


def _tables(content: bytes) -> bytes:
    data = tomllib.loads(content.decode("utf-8"))
    kept = {**data, **data.get("tool", {})}
    return json.dumps({name: kept.get(name) for name in TABLES}, sort_keys=True).encode()


def read(root: Path) -> str:
    """Return the digest of the files in the folder ``root``."""
    files = [root / name for name in FILES]
    files += [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    found = {path.relative_to(root).as_posix(): path for path in files}
    return digest({name: path.read_bytes() for name, path in found.items() if belongs(name)})
