"""Relocating real ELF libraries, as readelf and the loader see them."""

from __future__ import annotations

import ctypes
import subprocess
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.binaries import elf
from build_tools.binaries.relocate.elf import manylinux_tag, relocate, without_run_paths
from build_tools.support.errors import RelocationError
from tests.build_tools.audit.makers import MACHINE, needs_cc
from tests.build_tools.audit.makers import elf as compiled_elf

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_cc
PLAIN = "int demo(void) { return 41; }"


def made(folder: Path, source: str = PLAIN, *flags: str, name: str = "libdemo.so") -> Path:
    path = folder / name
    path.write_bytes(compiled_elf(source, *flags, strict=False))
    return path


def readelf(path: Path, *options: str) -> str:
    done = subprocess.run(["readelf", "-W", *options, str(path)], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


def test_debug_information_goes(tmp_path: Path) -> None:
    library = made(tmp_path, PLAIN, "-g", "-ffile-prefix-map=/=.")
    assert ".debug_info" in readelf(library, "-S")
    relocate(library)
    assert ".debug_info" not in readelf(library, "-S")
    assert ctypes.CDLL(str(library)).demo() == 41


def test_run_paths_leave_no_trace(tmp_path: Path) -> None:
    flags = ("-Wl,-rpath,/home/someone/.swiftly/toolchains/lib:/opt/swift/usr/lib/demo",)
    library = made(tmp_path, PLAIN, *flags)
    assert "/home/someone" in readelf(library, "-d")
    relocate(library)
    assert "PATH" not in readelf(library, "-d")
    assert b"someone" not in library.read_bytes()
    assert b"/opt/swift" not in library.read_bytes()
    # The last word of the run path is, by the linker's tail merging, this function's name too.
    assert ctypes.CDLL(str(library)).demo() == 41


def test_tails_that_are_shared_stay() -> None:
    data = b"\0/home/x/demo\0$ORIGIN/lib\0"
    assert without_run_paths(data, ["/home/x/demo", "$ORIGIN/lib"]) == (
        b"\0XXXXXXXXdemo\0XXXXXXXXlib\0"
    )


def test_the_command_leaves_the_original(tmp_path: Path) -> None:
    library = made(tmp_path, PLAIN, "-Wl,-rpath,/opt/somewhere")
    before = library.read_bytes()
    assert main(["relocate", str(library), "--out", str(tmp_path / "out")]) == 0
    assert library.read_bytes() == before
    assert elf.read((tmp_path / "out" / library.name).read_bytes()).rpaths == ()


def test_an_unused_swift_runtime_goes(tmp_path: Path) -> None:
    stub = made(tmp_path, "int swift(void) { return 1; }", "-Wl,-soname,libswiftCore.so",
                name="libswiftCore.so")  # fmt: skip
    library = made(tmp_path, PLAIN, "-Wl,--no-as-needed", str(stub), "-Wl,-rpath,/opt/swift/lib")
    assert "libswiftCore.so" in elf.read(library.read_bytes()).needed
    relocate(library)
    assert "libswiftCore.so" not in elf.read(library.read_bytes()).needed


REFUSED = {
    "the Swift runtime": (
        "int swift_retain(void); int demo(void) { return swift_retain(); }", (),
        r"uses the Swift runtime \(swift_retain",
    ),
    "an executable stack": (PLAIN, ("-Wl,-z,execstack",), "executable stack"),
    "a path of this machine": (
        'const char *where(void) { return "/home/someone/demo.c"; }', (),
        "names folders of this machine: /home/someone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, tmp_path: Path) -> None:
    source, flags, message = REFUSED[what]
    library = made(tmp_path, source, *flags)
    before = library.read_bytes()
    with pytest.raises(RelocationError, match=message):
        relocate(library)
    assert library.read_bytes() == before, "nothing half done"
    assert {path.name for path in tmp_path.iterdir()} <= {"libdemo.so", "test.log"}


def test_foreign_dependencies_are_refused(tmp_path: Path) -> None:
    other = made(tmp_path, "int other(void) { return 1; }", "-Wl,-soname,libother.so.7",
                 name="libother.so")  # fmt: skip
    library = made(tmp_path, "int other(void); int demo(void) { return other(); }", str(other))
    with pytest.raises(RelocationError, match=r"depends on libother\.so\.7, not the system"):
        relocate(library)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 500, b"text" * 50])
def test_what_is_no_library(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "libdemo.so"
    path.write_bytes(data)
    with pytest.raises(RelocationError):
        relocate(path)
    assert path.read_bytes() == data


def test_the_lowest_honest_tag(tmp_path: Path) -> None:
    assert manylinux_tag(made(tmp_path)) == f"manylinux_2_17_{MACHINE}"
    # pthread_join moved into libc, under a new version, with glibc 2.34.
    newer = made(
        tmp_path, "#include <pthread.h>\nint demo(pthread_t t) { return pthread_join(t, 0); }"
    )
    needs = max(
        tuple(map(int, version.removeprefix("GLIBC_").split(".")))
        for _, version in elf.read(newer.read_bytes()).versions
    )
    expected = max(needs[:2], (2, 17))
    assert manylinux_tag(newer) == f"manylinux_{expected[0]}_{expected[1]}_{MACHINE}"
