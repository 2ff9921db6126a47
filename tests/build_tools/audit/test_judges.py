"""Our readers against the field's own: pyelftools, LIEF, macholib, on real libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import lief
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection
from macholib.mach_o import LC_ID_DYLIB, LC_LOAD_DYLIB, LC_RPATH
from macholib.MachO import MachO

from build_tools.binaries import elf, macho, signature
from tests.build_tools.audit.makers import SWIFTPM_RPATHS, dylib, universal

LARGEST = 64 * 1024 * 1024
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
            if path.suffix != ".py" and path.stat().st_size < LARGEST:
                found.setdefault(f"{name}/{path.name}", path)
    return [path for _, path in sorted(found.items())][:40]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the libraries of this environment")
def test_elf_as_pyelftools_reads_it() -> None:
    paths = elf_files()
    assert len(paths) >= 5, "the environment has libraries to compare"
    for path in paths:
        ours = elf.read(path.read_bytes())
        with path.open("rb") as stream:
            theirs = ELFFile(stream)
            dynamic = [s for s in theirs.iter_sections() if isinstance(s, DynamicSection)]
            needed = [t.needed for s in dynamic for t in s.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]
            versions = {
                (need.name, version.name)
                for section in theirs.iter_sections()
                if isinstance(section, GNUVerNeedSection)
                for need, all_versions in section.iter_versions()
                for version in all_versions
            }
            symbols = [
                symbol
                for section in theirs.iter_sections()
                if isinstance(section, SymbolTableSection) and section.name == ".dynsym"
                for symbol in section.iter_symbols()
                if symbol.name and symbol["st_info"]["bind"] != "STB_LOCAL"
            ]
        assert list(ours.needed) == needed, path
        assert ours.versions == versions, path
        undefined = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
        assert ours.imports == undefined, path
        visible = {"STV_DEFAULT", "STV_PROTECTED"}
        exported = {
            s.name
            for s in symbols
            if s["st_shndx"] not in {"SHN_UNDEF", "SHN_ABS"}
            and s["st_other"]["visibility"] in visible
        }
        assert ours.exports == exported, path


@pytest.mark.skipif(sys.platform != "linux", reason="reads the libraries of this environment")
def test_elf_hardening_as_lief_reads_it() -> None:
    for path in elf_files():
        ours, theirs = elf.read(path.read_bytes()), lief.ELF.parse(str(path))
        assert theirs is not None
        kinds = {each.type for each in theirs.segments}
        assert ours.relro == (lief.ELF.Segment.TYPE.GNU_RELRO in kinds), path
        assert ours.executable_stack != theirs.has_nx, path
        soname = [e for e in theirs.dynamic_entries if e.tag == lief.ELF.DynamicEntry.TAG.SONAME]
        assert ours.soname == (soname[0].name if soname else None), path


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_mach_o_as_lief_and_macholib_read_it(architecture: str, tmp_path: Path) -> None:
    data = dylib(
        source=USES, needs=("@rpath/libx.dylib",), rpaths=SWIFTPM_RPATHS, architecture=architecture
    )
    (ours,) = macho.read(data)
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
    assert ours.exports == {each.name.removeprefix("_") for each in theirs.exported_symbols}
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


def test_universal_as_lief_reads_it(tmp_path: Path) -> None:
    data = universal(dylib(), dylib(architecture="x86_64"))
    path = tmp_path / "libdemo.dylib"
    path.write_bytes(data)
    fat = lief.MachO.parse(str(path))
    assert fat is not None
    assert len(fat) == 2
    ours = macho.read(data)
    assert [each.architecture for each in ours] == ["arm64", "x86_64"]
    assert [each.window.start for each in ours] == [each.fat_offset for each in fat]


def test_a_linker_s_own_signature_is_sound() -> None:
    (part,) = macho.read(dylib())
    verdict = signature.verify(part)
    assert verdict is not None
    assert verdict.problems == ()
    assert verdict.kind == "linker-signed"
    assert verdict.identifier == "libdemo.dylib"
