"""CHANGELOG.md as data: its sections, and the notes of one version.

The format is Keep a Changelog's: ``## [Unreleased]``, then ``## [1.2.3] - 2026-01-31``.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from build_tools.support.errors import ReleaseError

UNRELEASED = "Unreleased"
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?\s*$")
# Link definitions at the end of the file belong to no section.
LINK = re.compile(r"^\[[^\]]+\]: \S+\s*$")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One version's section; ``date`` is None where the heading has none."""

    name: str
    date: dt.date | None
    text: str


def read(path: Path) -> list[Section]:
    """Return the sections of the file at ``path``, in its order.

    Raises:
        ReleaseError: There is no such file, a heading is not of the format, or a name is there
            twice.

    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise ReleaseError(msg) from error
    found: list[tuple[str, dt.date | None, list[str]]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("## "):
            found.append((*_heading(line, f"{path.name}:{number}"), []))
        elif found and not LINK.match(line):
            found[-1][2].append(line)
    names = [name for name, _, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"{path.name} has two sections [{twice[0]}]; merge them"
        raise ReleaseError(msg)
    return [
        Section(name=name, date=date, text="\n".join(body).strip()) for name, date, body in found
    ]


def notes(path: Path, version: str) -> str:
    """Return the text of ``version``'s section, without its heading.

    Raises:
        ReleaseError: There is none, it has no date, or it is empty.

    """
    section = next((each for each in read(path) if each.name == version), None)
    if section is None:
        msg = (
            f"{path.name} has no section [{version}]. Rename [{UNRELEASED}] to "
            f"[{version}] - YYYY-MM-DD and put an empty [{UNRELEASED}] above it."
        )
        raise ReleaseError(msg)
    if section.date is None:
        msg = f"{path.name}: the heading [{version}] needs its date: ## [{version}] - YYYY-MM-DD"
        raise ReleaseError(msg)
    if not section.text:
        msg = f"{path.name}: the section [{version}] is empty; say what changed"
        raise ReleaseError(msg)
    return section.text


def _heading(line: str, where: str) -> tuple[str, dt.date | None]:
    match = HEADING.match(line)
    if match is None:
        msg = f"{where}: {line!r} is not of the form `## [1.2.3] - YYYY-MM-DD`"
        raise ReleaseError(msg)
    if match["date"] is None:
        return match["name"], None
    try:
        return match["name"], dt.date.fromisoformat(match["date"])
    except ValueError as error:
        msg = f"{where}: {match['date']!r} is not a date of the form YYYY-MM-DD"
        raise ReleaseError(msg) from error
