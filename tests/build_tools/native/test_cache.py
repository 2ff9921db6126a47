"""The one cache of finished libraries, whatever built them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.native import cache
from build_tools.support.errors import BuildError, ToolError
from build_tools.support.flock import locked
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


class Maker:
    """Makes a library of one line, and counts how often."""

    def __init__(self, text: str = "a library") -> None:
        self.text, self.made = text, 0

    def __call__(self, stage: Path) -> tuple[Path, dict[str, Any]]:
        self.made += 1
        library = stage / "lib.so"
        library.write_text(self.text, encoding="utf-8")
        (stage / "licenses").mkdir()
        (stage / "licenses" / "LICENSE").write_text("free", encoding="utf-8")
        return library, {"engine": "test"}


def test_what_is_there_is_taken(tmp_path: Path) -> None:
    maker = Maker()
    first = cache.obtain(tmp_path / "a-1", maker)
    assert cache.obtain(tmp_path / "a-1", maker) == first
    assert maker.made == 1
    assert first.manifest["engine"] == "test"
    assert set(first.manifest["files"]) == {"lib.so", "licenses/LICENSE"}
    assert first.manifest["library"]["sha256"] == first.manifest["files"]["lib.so"]


@pytest.mark.parametrize("damage", ["lib.so", "licenses/LICENSE", cache.MANIFEST])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_damage_is_built_anew(tmp_path: Path, damage: str, how: str) -> None:
    maker = Maker()
    first = cache.obtain(tmp_path / "a-1", maker)
    if how == "gone":
        (first.folder / damage).unlink()
    else:
        (first.folder / damage).write_text("[]", encoding="utf-8")
    assert cache.obtain(tmp_path / "a-1", maker) == first
    assert maker.made == 2


def test_nothing_is_left_of_a_failure_and_of_a_killed_run(tmp_path: Path) -> None:
    def fail(stage: Path) -> tuple[Path, dict[str, Any]]:
        (stage / "half").write_text("x", encoding="utf-8")
        msg = "the compiler failed"
        raise ToolError(msg)

    (tmp_path / ".a-1.killed" / "stage").mkdir(parents=True)
    with pytest.raises(ToolError, match="the compiler failed"):
        cache.obtain(tmp_path / "a-1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a-1.lock"]


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    def full(stage: Path) -> tuple[Path, dict[str, Any]]:
        raise OSError(28, "No space left on device")

    with pytest.raises(BuildError, match=r"No space left on device.*Free some room"):
        cache.obtain(tmp_path / "a-1", full)


def test_another_process_waits_for_the_lock(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from build_tools.support.flock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('mine')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with locked(tmp_path / "lock"):
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
    assert child.communicate(timeout=60)[0] == "mine\n"


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()
