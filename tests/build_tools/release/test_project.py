from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qwen_mfa
from build_tools.release import project
from build_tools.support.errors import ReleaseError
from qwen_mfa.native import library

if TYPE_CHECKING:
    from build_tools.release.project import Project


def test_one_version_everywhere(subject: Project) -> None:
    assert metadata.version("qwen-mfa") == subject.version
    assert qwen_mfa.__version__ == subject.version
    program = Path(sys.executable).parent / "qwen-mfa"
    told = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == f"qwen-mfa {subject.version}"
    if library.has_embedded():
        assert library.load().manifest["package"]["version"] == subject.version


def test_it_is_written_in_one_place(root: Path, subject: Project) -> None:
    assignment = re.compile(
        rf"version\w*\s*[:=]+\s*[\"']{re.escape(subject.version)}[\"']", re.IGNORECASE
    )
    places = [
        path.relative_to(root).as_posix()
        for folder in ("mfa_wheel", "build_tools", "swift_pkg/Sources")
        for path in (root / folder).rglob("*")
        if path.suffix in {".py", ".toml", ".c", ".h", ".json"}
        and assignment.search(path.read_text(encoding="utf-8"))
    ]
    assert places == []


@pytest.mark.parametrize("text", ["1.0", "1.2.3", "1.2.3rc1", "2.0.0.dev1"])
def test_normal_versions(text: str) -> None:
    assert project.normalized(text) == text


@pytest.mark.parametrize(
    ("text", "words"), [("1.2.3-rc1", "write '1.2.3rc1'"), ("v1", "write '1'"), ("one", "not a")]
)
def test_other_versions(text: str, words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        project.normalized(text)


@pytest.mark.parametrize("content", ["", "[project", "[project]\nname = 'x'", "[project]\nname=1"])
def test_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "pyproject.toml").write_text(content, encoding="utf-8")
    with pytest.raises(ReleaseError, match="cannot be used"):
        project.load(tmp_path)
