"""Wheels made with Swift, with cc and with neither, each installed clean and run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from build_tools.native import portable
from build_tools.support.errors import ToolError
from tests.build_tools.rehearsal.installers import Environment, left_behind

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def clean(shared: Path, root: Path) -> Environment:
    """An environment with what the wheel needs, made once for all test workers."""
    made = Environment(folder=shared / "clean")
    with FileLock(shared / "clean.lock"):
        if not made.folder.exists():
            made.create()
            backend = "mlx[cpu]" if sys.platform == "linux" else "mlx"
            constraints = str(root / "requirements" / "constraints.txt")
            made.install("--no-compile", "-c", constraints, backend, "cffi")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("toolchain", ["none", "cc", "auto"])
def test_clean_installation(
    toolchain: str, clean: Environment, shared: Path, request: pytest.FixtureRequest
) -> None:
    if toolchain == "cc":
        (wheel,) = (request.getfixturevalue("reproduced") / "out-alice").glob("*.whl")
    else:
        wheel = request.getfixturevalue({"none": "pure", "auto": "installable"}[toolchain])
    assert wheel.name.endswith("-py3-none-any.whl") == (toolchain == "none")
    with FileLock(shared / "clean.lock"):
        clean.install("--no-deps", "--force-reinstall", str(wheel))
        done = subprocess.run(
            [str(clean.bin / "qwen-mfa"), "selftest", "--json", "--image-tokens", "50"],
            cwd=clean.folder, env=clean.variables(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        before = clean.files()
        clean.check_dependencies()
        clean.uninstall()
        assert left_behind(before, clean.files()) == []
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    state, kernel = ("none", "mlx") if toolchain == "none" else ("ready", "cpu")
    assert report["library"]["state"] == state
    assert {row["kernel"] for row in report["rows"]} == {kernel}
    if toolchain == "cc":
        assert report["library"]["built by"] == "cc"


def test_unknown_toolchain() -> None:
    with pytest.raises(ToolError, match="not one of auto, swift, cc, none"):
        portable.choose_toolchain({portable.CHOICE: "make"})


def test_a_toolchain_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ("swift", "cc"):
        with pytest.raises(ToolError, match="does not run"):
            portable.choose_toolchain({portable.CHOICE: name})
    assert portable.choose_toolchain({}) == "none"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of one function in place of ours; its C file."""
    package = tmp_path / "swift_pkg"
    sources = package / "Sources" / "MFAFFI"
    (sources / "include").mkdir(parents=True)
    (package / "Package.swift").write_text("", encoding="utf-8")
    (package / portable.EXPORTS).write_text("{ global: mfa_*; local: *; };", encoding="utf-8")
    monkeypatch.setattr(portable, "ROOT", tmp_path)
    monkeypatch.setattr(portable, "PACKAGE", package)
    monkeypatch.setattr(portable, "SOURCES", sources)
    path = sources / "small.c"
    path.write_text("int mfa_small(void) { return 1; }", encoding="utf-8")
    return path


def test_a_compiler_error_shows_the_compiler_s_words(small: Path, tmp_path: Path) -> None:
    small.write_text("int f(void) { return undeclared_thing; }", encoding="utf-8")
    with pytest.raises(ToolError, match="undeclared_thing"):
        portable.build(work=tmp_path / "work", toolchain="cc")
    left = [p.name for p in (tmp_path / "work").iterdir()]
    assert [name.endswith(".lock") for name in left] == [True]


def test_the_second_build_comes_from_the_cache(small: Path) -> None:
    first = portable.build(toolchain="cc")
    assert first is not None
    written = first.library.stat().st_mtime_ns
    again = portable.build(toolchain="cc")
    assert again == first
    assert again is not None
    assert again.library.stat().st_mtime_ns == written
    first.library.write_bytes(b"damaged")
    mended = portable.build(toolchain="cc")
    assert mended is not None
    assert mended.manifest == first.manifest
    assert mended.library.stat().st_size > 1000
    small.write_text("int mfa_small(void) { return 2; }", encoding="utf-8")
    other = portable.build(toolchain="cc")
    assert other is not None
    assert other.folder != first.folder
