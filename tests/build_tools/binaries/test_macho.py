"""Relocating real Mach-O libraries, as seen by LLVM's tools and by LIEF, which wrote none of it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import lief
import pytest

from build_tools.__main__ import main
from build_tools.audit.auditor import audit
from build_tools.binaries import macho
from build_tools.binaries.relocate.adhoc import sign
from build_tools.binaries.relocate.macho import embed, platform_tag, relocate
from build_tools.source.header import declared
from build_tools.support.errors import RelocationError
from tests.build_tools.audit.makers import (
    ROOT,
    SWIFTPM_RPATHS,
    dylib,
    mac,
    universal,
    unsigned,
)

if TYPE_CHECKING:
    from pathlib import Path

NAME = "libMFAFFI.dylib"
INNER = "libneeded0.dylib"
CDEF = (ROOT / "mfa_wheel" / "qwen_mfa" / "native" / "abi.cdef").read_text(encoding="utf-8")
ABI = declared(CDEF)
KEPT = ["/usr/lib/swift", "@loader_path"]


def tool(name: str) -> str:
    """Return an LLVM tool, whatever its version, or skip."""
    for candidate in (name, *(f"{name}-{version}" for version in range(25, 12, -1))):
        if shutil.which(candidate):
            return candidate
    pytest.skip(f"{name} is not here (apt-get install llvm)")


def engine(architecture: str = "arm64", *, flags: tuple[str, ...] = ()) -> bytes:
    """Return what SwiftPM leaves: the whole ABI, and rpaths of the build machine."""
    functions = "".join(f"int {name}(void) {{ return 1; }}\n" for name in ABI)
    return dylib(
        name=NAME, source=functions, rpaths=SWIFTPM_RPATHS, architecture=architecture, flags=flags
    )


def inner(architecture: str = "arm64") -> bytes:
    return dylib(name=INNER, source="int needed0(void) { return 0; }", architecture=architecture)


@pytest.fixture
def relocated(tmp_path: Path) -> Path:
    """Relocate the library by the command, and return the folder."""
    source, out = tmp_path / NAME, tmp_path / "out"
    source.write_bytes(engine())
    assert main(["relocate", str(source), "--out", str(out)]) == 0
    assert source.read_bytes() == engine(), "nothing is changed in place"
    assert [path.name for path in out.iterdir()] == [NAME]
    return out


def test_as_lief_reads_it(relocated: Path) -> None:
    fat = lief.MachO.parse(str(relocated / NAME))
    assert fat is not None
    assert len(fat) == 1, "thin"
    library = fat.at(0)
    assert library is not None
    assert library.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    names = {each.command: each.name for each in library.libraries}
    kinds = lief.MachO.LoadCommand.TYPE
    assert names[kinds.ID_DYLIB] == f"@loader_path/{NAME}"
    loaded = [each.name for each in library.libraries if each.command == kinds.LOAD_DYLIB]
    assert loaded == ["/usr/lib/libSystem.B.dylib"]
    assert [each.path for each in library.rpaths] == KEPT
    assert library.build_version is not None
    assert library.build_version.minos == [15, 0, 0]
    assert set(ABI) <= {str(each.name).removeprefix("_") for each in library.exported_symbols}
    assert library.has_code_signature
    assert library.code_signature is not None
    end = library.code_signature.data_offset + library.code_signature.data_size
    assert end == (relocated / NAME).stat().st_size, "the signature ends the file"


def test_as_llvm_reads_it(relocated: Path) -> None:
    objdump = tool("llvm-objdump")
    text = subprocess.run(
        [objdump, "--macho", "--private-headers", str(relocated / NAME)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.findall(r"^\s+path (.*) \(offset", text, re.MULTILINE) == KEPT
    assert f"name @loader_path/{NAME} (offset" in text
    assert "minos 15.0" in text
    assert "LC_CODE_SIGNATURE" in text
    for foreign in ("/Users/", "/Applications/Xcode", "cryptex"):
        assert foreign not in text
        assert foreign.encode() not in (relocated / NAME).read_bytes()


def test_the_audit_sees_what_relocation_mends(tmp_path: Path) -> None:
    data = dylib(name=NAME, source=f"int {ABI[0]}(void) {{ return 1; }}", rpaths=SWIFTPM_RPATHS)
    options = {"files": {"qwen_mfa/native/abi.cdef": f"int {ABI[0]}(void);".encode()}}
    codes = {each.code for each in audit(mac(data, **options).write(tmp_path)).findings}
    assert codes == {"rpath", "build-path", "install-name", "signature", "abi-extra"}
    mended = mac(relocate(data, filename=NAME), **options)
    # zig's linker exports two names of its own, which no relocation takes away.
    assert {each.code for each in audit(mended.write(tmp_path)).findings} == {"abi-extra"}


# ---------------------------------------------------------------- signatures and edits


def laid_out(data: bytes, tmp_path: Path) -> bytes:
    """Return ``data`` in the layout that LLVM gives to every file it writes (and signs)."""
    path = tmp_path / NAME
    path.write_bytes(data)
    subprocess.run(
        [tool("llvm-install-name-tool"), "-id", "@rpath/x", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return path.read_bytes()


def test_the_signature_is_llvm_s_byte_for_byte(tmp_path: Path) -> None:
    theirs = laid_out(engine(), tmp_path)
    part = macho.read(theirs)
    assert part.signature is not None
    assert sign(theirs, identifier=NAME) == theirs
    blank = theirs[: part.signature[0]] + bytes(part.signature[1])
    assert sign(blank, identifier=NAME) == theirs


def test_the_edits_are_llvm_s_byte_for_byte(tmp_path: Path) -> None:
    data = laid_out(engine(), tmp_path)
    path = tmp_path / NAME
    gone = [each for each in SWIFTPM_RPATHS if each not in KEPT]
    removed = [word for each in gone for word in ("-delete_rpath", each)]
    command = [tool("llvm-install-name-tool"), "-id", f"@loader_path/{NAME}", *removed]
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    assert relocate(data, filename=NAME) == path.read_bytes()


def test_twice_is_once() -> None:
    once = relocate(engine(), filename=NAME)
    again = relocate(once, filename=NAME)
    assert once == again


def test_an_unsigned_library_is_signed() -> None:
    signed = relocate(unsigned(inner()), filename=INNER)
    fat = lief.MachO.parse(signed)
    assert fat is not None
    library = fat.at(0)
    assert library is not None
    assert library.has_code_signature
    assert library.code_signature is not None
    assert library.code_signature.data_offset + library.code_signature.data_size == len(signed)
    assert sign(signed, identifier=INNER) == signed


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9, -1])
def test_a_flipped_bit_breaks_the_signature(place: float) -> None:
    data = bytearray(relocate(inner(), filename=INNER))
    part = macho.read(bytes(data))
    assert part.signature is not None
    start, size = part.signature
    end = start + size - 20 if place == -1 else int(start * place)
    data[end] ^= 1
    assert sign(bytes(data), identifier=INNER) != bytes(data)


def test_doubled_rpaths_go() -> None:
    data = dylib(name=INNER, rpaths=("/usr/lib/swift", "@loader_path"))
    # The linker refuses doubles, SwiftPM's do occur: turn one into the other.
    doubled = data.replace(b"@loader_path\0\0\0\0", b"/usr/lib/swift\0\0")
    assert macho.read(doubled).rpaths == ("/usr/lib/swift", "/usr/lib/swift")
    result = relocate(doubled, filename=INNER)
    assert macho.read(result).rpaths == ("/usr/lib/swift",)


# ---------------------------------------------------------------- refusals


def refuse(data: bytes, pattern: str, **options: object) -> None:
    with pytest.raises(RelocationError, match=pattern):
        relocate(data, filename=NAME, **options)  # type: ignore[arg-type]


def test_refusals() -> None:
    foreign = dylib(
        source="int needed0(void); int demo(void) { return needed0(); }",
        needs=("@rpath/libx.dylib",),
    )
    refuse(foreign, r"depends on @rpath/libx\.dylib, which is not the system's")
    refuse(inner(), r"needs macOS 15\.0, the wheel's tag admits 11\.0", minimum_os=(11, 0))
    refuse(inner("x86_64"), "built for x86_64, not for arm64")
    refuse(universal(inner(), inner("x86_64")), "a universal file, for several processors")
    refuse(b"\x7fELF", "no magic number")
    refuse(b"", "no magic number")
    refuse(inner()[:3000], "no sound Mach-O file")
    refuse(inner() + b"more", "goes on for 4 bytes after its last segment")
    ios = bytearray(inner())
    at = next(c.offset for c in macho.read(bytes(ios)).commands if c.kind == 0x32)
    struct.pack_into("<I", ios, at + 8, 2)
    refuse(bytes(ios), "built for ios, not for macOS")


def test_no_room_for_longer_names() -> None:
    data = dylib(name=INNER, flags=("-Wl,-headerpad,0x0",))
    part = macho.read(data)
    room = min(each.lowest_section for each in part.segments if each.lowest_section)
    last = part.commands[-1]
    name = "lib" + "x" * (room - last.offset - last.size + 64) + ".dylib"
    with pytest.raises(RelocationError, match="headerpad_max_install_names"):
        relocate(data, filename=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}/gone.dylib", "--out", "{out}"], "is no file"),
        (["{in}", "--out", "{out}"], "is no file"),
        (["{in}/text", "--out", "{out}"], "neither an ELF nor a Mach-O file"),
        (["{in}/good.dylib", "--out", "{in}"], "nothing is changed in place"),
        (["{in}/good.dylib", "--out", "{out}", "--minimum-os", "new"], "not a version"),
        (["{in}/good.dylib", "--out", "{out}", "--minimum-os", "11.0"], "the wheel's tag admits"),
    ],
)
def test_bad_command_lines(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"in": tmp_path / "in", "out": tmp_path / "out"}
    folders["in"].mkdir()
    (folders["in"] / "good.dylib").write_bytes(inner())
    (folders["in"] / "text").write_text("not a library", encoding="utf-8")
    assert main(["relocate", *(word.format(**folders) for word in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not folders["out"].exists() or not list(folders["out"].iterdir()), "no partial output"


def test_a_folder_in_place_of_the_result_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / INNER, tmp_path / "out"
    source.write_bytes(inner())
    (out / INNER / "inside").mkdir(parents=True)
    assert main(["relocate", str(source), "--out", str(out)]) == 1
    assert "or a folder; nothing is changed in place" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [INNER]
    assert (out / INNER / "inside").is_dir()


# ---------------------------------------------------------------- a third opinion


def test_repairwheel_leaves_the_same_load_commands(tmp_path: Path) -> None:
    machotools = pytest.importorskip(
        "repairwheel.macos.machotools", reason="repairwheel 0.8 is for Python 3.11 and later"
    )
    data = engine()
    ours = relocate(data, filename=NAME)
    path = tmp_path / NAME
    path.write_bytes(data)
    machotools.set_install_id(str(path), f"@loader_path/{NAME}")
    machotools._delete_rpaths(str(path), [each for each in SWIFTPM_RPATHS if each not in KEPT])
    mine, theirs = macho.read(ours), macho.read(path.read_bytes())
    assert [(c.kind, c.size) for c in mine.commands] == [(c.kind, c.size) for c in theirs.commands]
    for field in ("install_name", "dependencies", "rpaths", "minimum_os", "exports"):
        assert getattr(mine, field) == getattr(theirs, field), field


def test_embedding_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    library = tmp_path / "libdemo.dylib"
    data = dylib(rpaths=SWIFTPM_RPATHS)
    library.write_bytes(data)
    embed(library, minimum_os=(15, 0))
    assert library.read_bytes() == relocate(data, filename=library.name)
    assert library.stat().st_mode & 0o777 == 0o755
    assert platform_tag(library) == "macosx_15_0_arm64"
    before = library.read_bytes()
    with pytest.raises(RelocationError, match="the wheel's tag admits 14"):
        embed(library, minimum_os=(14, 0))
    assert library.read_bytes() == before
    assert list(tmp_path.iterdir()) == [library]


@pytest.mark.parametrize(("minimum", "tag"), [("11.0", "11_0"), ("13.3", "14_0")])
def test_the_lowest_tag(minimum: str, tag: str, tmp_path: Path) -> None:
    library = tmp_path / "libdemo.dylib"
    library.write_bytes(dylib(minimum=minimum))
    embed(library)
    assert platform_tag(library) == f"macosx_{tag}_arm64"
