"""The lock file: the real one is sound, and a damaged one is refused with the reason."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from build_tools.source import lock as locks
from build_tools.support.errors import LockError

if TYPE_CHECKING:
    from pathlib import Path

REAL = locks.DEFAULT.read_text(encoding="utf-8")


def test_the_real_pin() -> None:
    lock = locks.load()
    assert lock.upstream.commit == "e902f57bc4ef2fcde02c638d1b51914941ee395c"
    assert [module.path for module in lock.submodules] == ["metal-flash-attention"]
    assert all(repo.licences for repo in lock.repositories)
    assert "newest" in lock.why
    assert set(lock.requires) == {"swift", "macos", "xcode"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("schema = 1", "schema = 2", "schema is 2"),
        ("schema = 1", "schema = [", "not valid TOML"),
        ("[abi]", "[api]", r"\[abi\] is missing"),
        ('commit = "e902f57bc4ef2fcde02c638d1b51914941ee395c"', 'commit = "e902f57"', "full"),
        ('tree = "f7966b', 'tree = "F7966B', "lower-case"),
        ('commit = "e1009bfedaece595af74683b0bd87bf5769c0de1"', "", "commit is missing"),
        ('path = "metal-flash-attention"', 'path = "../x"', "not a plain path"),
        ('path = "metal-flash-attention"', 'path = "/x"', "not a plain path"),
        ('path = "metal-flash-attention"', 'path = "a/.GIT/x"', "not a plain path"),
        ('path = "metal-flash-attention"', 'path = "a//b"', "not a plain path"),
        ("https://github.com", "ssh://github.com", "must start with"),
        ("https://github.com", "--upload-pack=x", "must start with"),
        ("[[upstream.licences]]", "[[upstream.others]]", "names no licence"),
        ("[build.requires]", "[build.others]", r"\[requires\] is missing"),
    ],
)
def test_a_damaged_lock(before: str, after: str, told: str, tmp_path: Path) -> None:
    assert before in REAL
    path = tmp_path / "upstream.toml"
    path.write_text(REAL.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(LockError, match=told) as caught:
        locks.load(path)
    assert str(path) in str(caught.value)


def test_no_lock(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="cannot be read"):
        locks.load(tmp_path / "none.toml")


def test_rewriting_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "upstream.toml"
    shutil.copyfile(locks.DEFAULT, path)
    locks.rewrite(path, locks.load(path))
    assert path.read_text(encoding="utf-8") == REAL
