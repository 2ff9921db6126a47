"""What pyproject.toml says of the project: the one place where the version is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from build_tools.support.errors import ReleaseError
from build_tools.support.paths import ROOT
from build_tools.support.toml import tomllib

TAG_PREFIX = "v"


@dataclass(frozen=True, kw_only=True)
class Project:
    """The facts that a release needs."""

    root: Path
    name: str
    version: str

    @property
    def tag(self) -> str:
        """The tag of this version."""
        return f"{TAG_PREFIX}{self.version}"

    @property
    def changelog(self) -> Path:
        """The file of the changes."""
        return self.root / "CHANGELOG.md"

    @property
    def file_stem(self) -> str:
        """How the names of its files begin: name and version, as packaging standards spell them."""
        return f"{self.name.replace('-', '_')}-{self.version}"


def load(root: Path = ROOT) -> Project:
    """Read ``root``/pyproject.toml.

    Raises:
        ReleaseError: It is missing, damaged, or its version is no normalized release number.

    """
    path = root / "pyproject.toml"
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        name, version = data["project"]["name"], data["project"]["version"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        msg = f"{path} cannot be used: {error!r}"
        raise ReleaseError(msg) from error
    return Project(root=root, name=name, version=normalized(version))


def normalized(text: str) -> str:
    """Return ``text`` when it is a version in its normal form.

    Raises:
        ReleaseError: It is not; the message gives the normal form where there is one.

    """
    try:
        normal = str(Version(text))
    except (InvalidVersion, TypeError) as error:
        msg = f"{text!r} is not a version such as 1.2.3 or 1.2.3rc1"
        raise ReleaseError(msg) from error
    if normal != text:
        msg = f"the version {text!r} is not in its normal form; write {normal!r}"
        raise ReleaseError(msg)
    return text
