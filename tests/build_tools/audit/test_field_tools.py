"""Our readers against LIEF and macholib on real libraries; our wheel by the field's tools."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lief
import pytest
from macholib.mach_o import LC_ID_DYLIB, LC_LOAD_DYLIB, LC_RPATH
from macholib.MachO import MachO

from build_tools.binaries import elf, macho
from tests.build_tools.audit.makers import SWIFTPM_RPATHS, dylib, mac

MAX_SIZE = 64 * 1024 * 1024
ABSOLUTE = 0xFFF1
USES = "int needed0(void); int demo(void) { return needed0(); } int demo_data = 7;"


def elf_files() -> list[Path]:
    """Return libraries of the environment: Rust, C and C++, from a dozen build systems."""
    found: dict[str, Path] = {}
    for name in ("numpy", "lief", "rpds", "_cffi_backend", "lxml", "mlx", "ziglang"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        files = [Path(spec.origin)] if folder.name == "site-packages" else folder.rglob("*.so*")
        for path in files:
            if path.suffix != ".py" and path.stat().st_size < MAX_SIZE:
                found.setdefault(f"{name}/{path.name}", path)
    return [path for _, path in sorted(found.items())][:40]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the libraries of this environment")
def test_elf_as_lief_reads_it() -> None:
    paths = elf_files()
    assert len(paths) >= 5, "the environment has libraries to compare"
    for path in paths:
        ours, theirs = elf.read(path.read_bytes()), lief.ELF.parse(str(path))
        assert theirs is not None
        kinds = {each.type for each in theirs.segments}
        assert ours.relro == (lief.ELF.Segment.TYPE.GNU_RELRO in kinds), path
        assert ours.executable_stack != theirs.has_nx, path
        assert list(ours.needed) == theirs.libraries, path
        soname = [e for e in theirs.dynamic_entries if isinstance(e, lief.ELF.DynamicSharedObject)]
        assert ours.soname == (soname[0].name if soname else None), path
        needs = theirs.symbols_version_requirement
        assert ours.versions == {
            (need.name, version.name) for need in needs for version in need.get_auxiliary_symbols()
        }, path
        named = [each for each in theirs.dynamic_symbols if each.name and not _local(each)]
        assert ours.imports == {each.name for each in named if each.shndx == 0}, path
        visible = {lief.ELF.Symbol.VISIBILITY.DEFAULT, lief.ELF.Symbol.VISIBILITY.PROTECTED}
        assert ours.exports == {
            each.name
            for each in named
            if each.shndx not in {0, ABSOLUTE} and each.visibility in visible
        }, path


def _local(symbol: lief.ELF.Symbol) -> bool:
    return symbol.binding == lief.ELF.Symbol.BINDING.LOCAL


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_mach_o_as_lief_and_macholib_read_it(architecture: str, tmp_path: Path) -> None:
    data = dylib(
        source=USES, needs=("@rpath/libx.dylib",), rpaths=SWIFTPM_RPATHS, architecture=architecture
    )
    ours = macho.read(data)
    path = tmp_path / "libdemo.dylib"
    path.write_bytes(data)
    fat = lief.MachO.parse(str(path))
    assert fat is not None
    theirs = fat.at(0)
    assert theirs is not None
    assert [name for name, _ in ours.dependencies] == [
        each.name
        for each in theirs.libraries
        if each.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB
    ]
    assert list(ours.rpaths) == [each.path for each in theirs.rpaths] == list(SWIFTPM_RPATHS)
    assert ours.minimum_os == (15, 0)
    build = theirs.build_version
    assert build is not None
    assert build.minos == [15, 0, 0]
    assert {"demo", "demo_data"} <= ours.exports
    assert ours.exports == {str(each.name).removeprefix("_") for each in theirs.exported_symbols}
    mine = {(each.name, each.file_offset, each.file_size) for each in ours.segments}
    assert mine == {(each.name, each.file_offset, each.file_size) for each in theirs.segments}
    (header,) = MachO(str(path)).headers
    named = {LC_ID_DYLIB: [], LC_LOAD_DYLIB: [], LC_RPATH: []}  # type: ignore[var-annotated]
    for load, _, text in header.commands:
        if load.cmd in named:
            named[load.cmd].append(text.rstrip(b"\0").decode())
    assert named[LC_ID_DYLIB] == [ours.install_name]
    assert named[LC_LOAD_DYLIB] == [name for name, _ in ours.dependencies]
    assert named[LC_RPATH] == list(ours.rpaths)


# ---------------------------------------------------------------- our wheel, by the field's tools


@pytest.fixture
def wheel(installable: Path) -> Path:
    return installable


def told(*command: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_check_wheel_contents_has_nothing_to_say(wheel: Path) -> None:
    assert told("check-wheel-contents", str(wheel)) == f"{wheel}: OK\n"


def test_twine_accepts_the_metadata(wheel: Path) -> None:
    assert "PASSED" in told("twine", "check", "--strict", str(wheel))


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel runs on Linux only")
def test_auditwheel_agrees_with_the_tag(wheel: Path) -> None:
    tag = wheel.stem.split("-")[-1]
    assert f'"{tag}"' in " ".join(told("auditwheel", "show", str(wheel)).split())


def test_delocate_finds_no_dependency_but_the_system_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("otool") is None:
        names = [f"llvm-otool-{version}" for version in range(25, 13, -1)]
        found = next(filter(None, map(shutil.which, ["llvm-otool", *names])), None)
        if found is None:
            pytest.skip("delocate needs otool (apt-get install llvm)")
        (tmp_path / "bin").mkdir()
        # LLVM's reads what Apple's does, but for one option that concerns names with parentheses.
        otool = tmp_path / "bin" / "otool"
        otool.write_text(f'#!/bin/bash\nexec -a otool {found} "${{@/#-m/-v}}"\n', encoding="utf-8")
        otool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    listed = told("delocate-listdeps", "--all", str(mac().write(tmp_path))).split()
    assert listed == ["/usr/lib/libSystem.B.dylib"]
