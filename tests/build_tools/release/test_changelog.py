from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from build_tools.release import changelog
from build_tools.support.errors import ReleaseError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """# Changelog

Words before the first section.

## [Unreleased]

## [1.1.0] - 2026-11-02

### Added
- A thing.

## [1.0.0] - 2026-01-31

First.

[1.1.0]: https://example.org/1.1.0
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "CHANGELOG.md"


def test_sections(path: Path) -> None:
    path.write_text(GOOD, encoding="utf-8")
    found = changelog.read(path)
    assert [each.name for each in found] == ["Unreleased", "1.1.0", "1.0.0"]
    assert [each.date for each in found] == [None, dt.date(2026, 11, 2), dt.date(2026, 1, 31)]
    assert found[0].text == ""
    assert found[2].text == "First."


def test_notes(path: Path) -> None:
    path.write_text(GOOD, encoding="utf-8")
    assert changelog.notes(path, "1.1.0") == "### Added\n- A thing."


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("## [1.1.0] - 2026-11-02", "## [1.1.1] - 2026-11-02", "no section [1.1.0]"),
        ("## [1.1.0] - 2026-11-02", "## [1.1.0]", "needs its date"),
        ("### Added\n- A thing.", "", "is empty"),
        ("2026-11-02", "02.11.2026", "not a date"),
        ("## [1.0.0]", "## [1.1.0]", "two sections"),
        ("## [1.0.0] - 2026-01-31", "## 1.0.0", "not of the form"),
    ],
    ids=["other version", "no date", "empty", "bad date", "twice", "bad heading"],
)
def test_refusals(path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ReleaseError) as caught:
        changelog.notes(path, "1.1.0")
    assert words in str(caught.value)


def test_no_file(path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"CHANGELOG\.md cannot be read"):
        changelog.read(path)


def test_ours_is_of_the_format(root: Path) -> None:
    assert changelog.read(root / "CHANGELOG.md")[0].name == changelog.UNRELEASED
