"""Whether HEAD could be released: every condition met, then broken one by one."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.release import project, readiness
from build_tools.release.readiness import State
from tests.build_tools.rehearsal import platform_matrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PYPROJECT = """[build-system]
requires = []
[project]
name = "qwen-mfa"
version = "1.1.0"
"""
CHANGELOG = """# Changelog

## [Unreleased]

## [1.1.0] - 2026-11-02
- A thing.
"""
WORKFLOW = """jobs:
  a:
    steps:
      - uses: owner/action@0123456789012345678901234567890123456789  # v1.0.0
      - uses: $/.github/workflows/own.yml
"""


def _git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "CHANGELOG.md": CHANGELOG,
        ".github/workflows/ci.yml": WORKFLOW,
        readiness.PLATFORMS: platform_matrix.document([], "1.1.0"),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _git(tmp_path, "init", "--quiet")
    _commit(tmp_path)
    _git(tmp_path, "tag", "v1.0.0")
    _git(tmp_path, "tag", "vague")
    return tmp_path


def _commit(root: Path) -> None:
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "Change")


def _against(root: Path, tag: str | None = None) -> dict[str, str]:
    told = readiness.answers(project.load(root), tag=tag)
    return {each.condition: each.detail for each in told if each.state is State.NO}


def test_ready(tree: Path) -> None:
    assert _against(tree) == {}
    _git(tree, "tag", "v1.1.0")
    assert _against(tree) == {}
    assert _against(tree, "v1.1.0") == {}


def test_what_cannot_be_known_is_not_claimed(tree: Path) -> None:
    told = readiness.answers(project.load(tree))
    assert [each.state for each in told].count(State.UNKNOWN) == 2


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        _commit(root)

    return edit


def _tag_elsewhere(root: Path) -> None:
    _git(root, "tag", "v1.1.0")
    (root / "more").write_text("", encoding="utf-8")
    _commit(root)


@pytest.mark.parametrize(
    ("change", "tag", "condition", "words"),
    [
        (lambda r: (r / "new").write_text(""), None, "the working tree is HEAD", "files differ"),
        (lambda r: _git(r, "tag", "v1.2.0"), None, "the version is new", "not above 1.2.0"),
        (_tag_elsewhere, None, "the tag is HEAD's", "at another commit"),
        (_tag_elsewhere, "v1.1.0", "the tag is HEAD's", "does not point at HEAD"),
        (lambda _: None, "v1.2.0", "the tag is HEAD's", "pyproject.toml says 1.1.0"),
        (_edit("CHANGELOG.md", "[1.1.0]", "[1.0.9]"), None, "CHANGELOG.md has the version", "no s"),
        (_edit("CHANGELOG.md", "ed]\n", "ed]\n- More.\n"), None, "CHANGELOG.md has the version",
         "is not empty"),
        (_edit(".github/workflows/ci.yml", "@0123", "@v1"), None,
         "workflows use pinned actions only", "ci.yml: owner/action@v1"),
        (_edit(readiness.PLATFORMS, "version: 1.1.0", "version: 1.0.0"), None,
         "the platform matrix is of this version", "make rehearse"),
    ],
    ids=["dirty", "old version", "tag elsewhere", "tag not here", "other tag", "no section",
         "unreleased changes", "loose action", "old table"],
)  # fmt: skip
def test_not_ready(
    tree: Path, change: Callable[[Path], None], tag: str | None, condition: str, words: str
) -> None:
    change(tree)
    against = _against(tree, tag)
    assert set(against) == {condition}
    assert words in against[condition]


def test_files_are_looked_at(tree: Path) -> None:
    (tree.parent / "empty").mkdir(exist_ok=True)
    told = readiness.answers(project.load(tree), built=tree.parent / "empty")
    (answer,) = [each for each in told if each.condition == "every file is there"]
    assert answer.state is State.NO
    assert "none of it instead of one" in answer.detail


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["release-check", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == (0 if told["ready"] else 1)
    assert main(["release-check"]) == status
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 40
    assert all(each["condition"][:20] in shown for each in told["conditions"])
