"""What auditwheel has to confirm: the real one, and stand-ins that misbehave."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*manylinux*_x86_64.whl")
    return found


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for auditwheel, first on PATH; its text is the test's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    path = folder / "auditwheel"
    path.write_text(f"#!{sys.executable}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


HEADER = """import shutil, sys, zipfile
from pathlib import Path
out, wheel = Path(sys.argv[-2]), Path(sys.argv[-1])
out.mkdir()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel runs on Linux only")
def test_auditwheel_has_nothing_to_repair(wheel: Path, tmp_path: Path) -> None:
    assert main(["repair-check", str(wheel), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit('cannot repair')", "cannot repair"),
        ("", "made 0 wheels"),
        ("shutil.copy(wheel, out)\nzipfile.ZipFile(out / wheel.name, 'a').writestr('more', '')",
         "changed more"),
        ("shutil.copy(wheel, out / wheel.name.replace('2_17', '2_99'))", "not confirm the tag"),
    ],
    ids=["fails", "nothing", "changed", "another tag"],
)  # fmt: skip
def test_what_is_refused(
    wheel: Path,
    tool: Path,
    tmp_path: Path,
    script: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tool.open("a", encoding="utf-8") as file:
        file.write(HEADER + script)
    assert main(["repair-check", str(wheel), "--out", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wheel_for_any_platform(
    pure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair-check", str(pure), "--out", str(tmp_path / "out")]) == 1
    assert "for any platform" in capsys.readouterr().err


def test_no_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair-check", "notes.txt", "--out", str(tmp_path)]) == 1
    assert "notes.txt" in capsys.readouterr().err
