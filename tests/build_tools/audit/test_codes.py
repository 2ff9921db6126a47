"""Every code of the audit: an archive that earns it, while the sound ones earn nothing."""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.audit.auditor import audit
from build_tools.audit.findings import CODES
from build_tools.wheel import manifest, sbom
from tests.build_tools.audit.makers import (
    INFO,
    METADATA,
    NATIVE,
    ROOT,
    SOURCE,
    SWIFTPM_RPATHS,
    TOP,
    MadeWheel,
    dylib,
    elf,
    engine,
    linux,
    mac,
    mac_engine,
    needs_cc,
    scratch,
    sdist,
    universal,
    unsigned,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Case = tuple[str, Callable[[Path], Path]]

CASES: dict[str, Case] = {}
pytestmark = needs_cc
NEW_GLIBC = (
    f"#include <pthread.h>\n{SOURCE}\nint mfa_j(pthread_t t) {{ return pthread_join(t, 0); }}"
)


def case(code: str, what: str, make: Callable[[Path], Path]) -> None:
    """Register the maker of an archive that must earn ``code``."""
    CASES[f"{code}: {what}"] = (code, make)


def wheel(code: str, what: str, **options: Any) -> None:
    case(code, what, lambda folder: MadeWheel(**options).write(folder))


def library(code: str, what: str, *arguments: str, **options: Any) -> None:
    case(code, what, lambda folder: linux(*(arguments or (SOURCE,)), **options).write(folder))


def mach(code: str, what: str, make: Callable[[], bytes], **options: Any) -> None:
    case(code, what, lambda folder: mac(make(), **options).write(folder))


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """Return a maker of a sound wheel whose bytes are changed afterwards."""

    def make(folder: Path) -> Path:
        path = MadeWheel().write(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def repacked(**options: Any) -> Callable[[Path], Path]:
    """Return a maker of a sound wheel that is packed by zipfile as it comes."""

    def make(folder: Path) -> Path:
        path = MadeWheel().write(folder)
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, entry in MadeWheel().entries().items():
                archive.writestr(name, entry.content)
        return path

    return make


def sdist_as_tar(folder: Path) -> Path:
    path = sdist(folder)
    import gzip

    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    return path


case("not-canonical", "bytes before", changed(lambda data: b"#!/bin/sh\n" + data))
case("not-canonical", "bytes after", changed(lambda data: data + b"more"))
case("not-canonical", "compressed", repacked(compression=zipfile.ZIP_DEFLATED))
case("not-canonical", "other times and modes", repacked())
case("not-canonical", "a compressed sdist", sdist_as_tar)

TRUE = MadeWheel().entries()[f"{INFO}/RECORD"].content
wheel("record", "another hash", record=TRUE.replace(b"sha256=", b"sha256=A", 1))
wheel("record", "another size", record=TRUE.replace(b",6\n", b",7\n", 1))
wheel("record", "a weak hash", record=TRUE.replace(b"sha256", b"md5", 1))
wheel("record", "a file that is not listed", record=TRUE.split(b"\n", 1)[1])
wheel("record", "a file that is not there", record=TRUE + b"qwen_mfa/gone.py,,\n")
wheel("record", "a file listed twice", record=TRUE + TRUE)

for missing in ("qwen_mfa/py.typed", f"{INFO}/RECORD", f"{INFO}/licenses/LICENSE"):
    wheel("file-missing", missing, files={missing: None})
library("file-missing", "the SBOM", files={f"{INFO}/sboms/{sbom.NAME}": None})
library("file-missing", "the manifest", files={manifest.MANIFEST: None})
case("file-missing", "of an sdist", lambda f: sdist(f, {f"{TOP}/setup.py": None}))
case(
    "file-missing",
    "a folder of an sdist",
    lambda f: sdist(f, {f"{TOP}/requirements/constraints.txt": None}),
)
for extra in ("other/__init__.py", "qwen_mfa/secret.key", f"{NATIVE}/libMFAFFI.so"):
    wheel("file-unexpected", extra, files={extra: b"x"})
library("file-unexpected", "beside the library", files={f"{NATIVE}/more.py": b"x"})
case(
    "file-unexpected",
    "another library that the manifest names",
    lambda f: linux(
        files={f"{NATIVE}/libother.so": engine()},
        facts={
            "files": {
                each: hashlib.sha256(engine()).hexdigest()
                for each in ("libMFAFFI.so", "libother.so")
            }
        },
    ).write(f),
)
case("file-unexpected", "outside of an sdist", lambda f: sdist(f, {"setup.py": b"x"}))

wheel("metadata", "no METADATA", files={f"{INFO}/METADATA": b"Name: qwen-mfa\n"})
wheel("metadata", "another version", files={f"{INFO}/METADATA": METADATA.replace(b"1.0", b"1.1")})
wheel("metadata", "another name", files={f"{INFO}/METADATA": METADATA.replace(b"n-mfa", b"n-mfb")})
wheel(
    "metadata",
    "a licence that is not there",
    files={f"{INFO}/METADATA": METADATA.replace(b"LICENSE", b"COPYING")},
)
case("metadata", "an sdist of another version", lambda f: sdist(f, {f"{TOP}/PKG-INFO": b"Name: x"}))

WHEEL = MadeWheel().entries()[f"{INFO}/WHEEL"].content
for what, text in {
    "no field": b"\xff\xfe\0",
    "another tag": WHEEL.replace(b"any", b"win32"),
    "two tags": WHEEL.strip() + b"\nTag: py3-none-win32\n\n",
    "another version": WHEEL.replace(b"1.0", b"9.0"),
    "purelib unsaid": WHEEL.replace(b"Root-Is-Purelib: true\n", b""),
}.items():
    wheel("wheel-file", what, files={f"{INFO}/WHEEL": text})
POINTS = f"{INFO}/entry_points.txt"
wheel("entry-point", "no module", files={POINTS: b"[console_scripts]\nx = qwen_mfa.gone:main\n"})
wheel("entry-point", "no section", files={POINTS: b"x = qwen_mfa.cli:main\n"})

library("manifest", "of another platform", facts={"platform_tag": "manylinux_2_99_x86_64"})
library("manifest", "of another version", facts={"package": {"name": "qwen-mfa", "version": "2"}})
library("manifest", "without a compiler", facts={"compiler": ""})
library("manifest", "another hash", facts={"files": {"libMFAFFI.so": "0" * 64}})
library("manifest", "no library", facts={"library": []})
library("manifest", "not JSON", files={manifest.MANIFEST: b"{"})
library("manifest", "too deep", files={manifest.MANIFEST: b"[" * 100_000})
BOM = f"{INFO}/sboms/{sbom.NAME}"
library("sbom", "not JSON", files={BOM: b"{"})
library("sbom", "too deep", files={BOM: b"[" * 100_000})
library("sbom", "unknown version", files={BOM: b'{"bomFormat": "CycloneDX", "specVersion": "77"}'})
library("sbom", "another source", facts={"sources": {"swift_pkg/a.c": "b" * 64}})
library("sbom", "a source that it does not name", facts={"overlay": {"swift_pkg/b.c": "b" * 64}})
for index in ("{", '{"format": 2}', '{"format": 1, "libraries": {"a": {"file": []}}}'):
    name = f"{NATIVE}/shaders/index.json"
    wheel("shader-pack", index, files={name: index.encode()})

library(
    "build-path", "in the library", f'{SOURCE}\nconst char *mfa_w = "/home/somebody/work/demo.c";'
)
library("build-path", "in the manifest", facts={"compiler": "/Users/somebody/bin/cc"})
mach("build-path", "in a Mach-O library", lambda: dylib("libMFAFFI.dylib", rpaths=SWIFTPM_RPATHS))

case("library-malformed", "cut", lambda f: linux(library=engine()[:3000]).write(f))
case("library-malformed", "text", lambda f: linux(library=b"text" * 99).write(f))
case("library-malformed", "Mach-O in a Linux wheel", lambda f: linux(library=mac_engine()).write(f))
mach("library-malformed", "cut, Mach-O", lambda: mac_engine()[:4000])
mach("library-malformed", "ELF in a macOS wheel", engine)
mach("library-malformed", "two architectures", lambda: universal(mac_engine(), mac_engine()))
library("architecture", "ELF", tag="manylinux_2_17_riscv64")
mach("architecture", "Mach-O", lambda: dylib("libMFAFFI.dylib", architecture="x86_64"))
case("architecture", "no tag of ours", lambda f: linux(tag="linux_x86_64").write(f))
library("minimum-os", "glibc", NEW_GLIBC)
mach("minimum-os", "macOS", mac_engine, tag="macosx_11_0_arm64")


def needing(*flags: str) -> bytes:
    """Compile a library that needs another."""
    path = scratch() / "libother.so"
    path.write_bytes(elf("int other(void) { return 2; }", "-Wl,-soname,libother.so.9"))
    return engine(f"int other(void); {SOURCE.replace('1', 'other()')}", str(path), *flags)


USES = "int needed0(void); int mfa_demo(void) { return needed0(); }"
case("dependency", "ELF", lambda f: linux(library=needing()).write(f))
for place in ("/opt/homebrew/lib/libx.dylib", "@loader_path/libx.dylib", "libx.dylib"):
    mach(
        "dependency",
        place,
        lambda place=place: dylib("libMFAFFI.dylib", USES, needs=(place,)),  # type: ignore[misc]
    )
library("rpath", "ELF", SOURCE, "-Wl,-rpath,/opt/lib")
mach("rpath", "Mach-O", lambda: dylib("libMFAFFI.dylib", rpaths=SWIFTPM_RPATHS))
case("install-name", "ELF", lambda f: linux(library=elf(SOURCE)).write(f))
mach("install-name", "Mach-O", lambda: dylib("libMFAFFI.dylib", SOURCE))
library("hardening", "stack", SOURCE, "-Wl,-z,execstack")
library(
    "hardening",
    "text relocations",
    f'int mfa_x = 1; __asm__(".text\\n.quad mfa_x\\n"); {SOURCE}',
    "-Wl,-z,notext",
)
library("hardening", "no relro", SOURCE, "-Wl,-z,norelro")
library("hardening", "lazy binding", SOURCE, "-Wl,-z,lazy")
case(
    "debug-information", "ELF", lambda f: linux(library=engine(SOURCE, "-g", strict=False)).write(f)
)


def writable_code() -> bytes:
    data = bytearray(engine())
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, flags = struct.unpack_from("<II", data, table + index * size)
        if kind == 1 and flags & 1:
            struct.pack_into("<I", data, table + index * size + 4, flags | 2)
    return bytes(data)


case("hardening", "writable code", lambda f: linux(library=writable_code()).write(f))
mach("signature", "none", lambda: unsigned(mac_engine()))


def flipped() -> bytes:
    data = bytearray(mac_engine())
    data[data.index(b"@loader_path/libMFAFFI") + 16] ^= 0x20
    return bytes(data)


mach("signature", "of another file", flipped)
library("abi-missing", "ELF", "int mfa_other(void) { return 1; }")
mach("abi-missing", "Mach-O", lambda: mac_engine("int mfa_other(void) { return 1; }"))
library("abi-extra", "ELF", f"{SOURCE} int helper(void) {{ return 2; }}")
mach("abi-extra", "Mach-O", lambda: mac_engine(f"{SOURCE} int helper(void) {{ return 2; }}"))


@pytest.mark.parametrize("what", CASES)
def test_a_defect_earns_its_code(what: str, tmp_path: Path) -> None:
    code, make = CASES[what]
    path = make(tmp_path)
    before = path.read_bytes()
    report = audit(path)
    hits = [each for each in report.findings if each.code == code]
    assert hits, report.findings
    assert all(each.file and each.what and each.mend for each in hits)
    assert path.read_bytes() == before, "an audit changes nothing"
    assert list(tmp_path.iterdir()) == [path], "an audit leaves nothing behind"


def test_every_code_has_a_case() -> None:
    assert {code for code, _ in CASES.values()} == set(CODES)


SOUND = {
    "pure": lambda f: MadeWheel().write(f),
    "linux": lambda f: linux().write(f),
    "macos": lambda f: mac().write(f),
    "sdist": sdist,
}


@pytest.mark.parametrize("what", SOUND)
def test_a_sound_archive_earns_nothing(what: str, tmp_path: Path) -> None:
    assert audit(SOUND[what](tmp_path)).findings == ()  # type: ignore[no-untyped-call]


def test_the_documentation_lists_every_code() -> None:
    text = (ROOT / "docs" / "auditing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert {code: (meaning, mend) for code, meaning, mend in rows} == CODES
