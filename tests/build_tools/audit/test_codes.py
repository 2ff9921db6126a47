"""Every code of the catalogue: a wheel that earns it, while the sound ones earn nothing."""

from __future__ import annotations

import shutil
import struct
import sys
import warnings
import zipfile
from typing import TYPE_CHECKING

import pytest

from build_tools.audit.auditor import audit
from build_tools.audit.codes import CODES
from build_tools.audit.policy import parse
from tests.build_tools.audit.makers import (
    INFO,
    LINUX_TAG,
    MAC_TAG,
    METADATA,
    SWIFTPM_RPATHS,
    Recipe,
    dll,
    dylib,
    elf,
    entry,
    pack,
    record,
    scratch,
    universal,
    unsigned,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Case = tuple[str, Callable[[Path], Path], str]

CASES: list[Case] = []


def case(code: str, file: str = "") -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register a maker of a wheel that must earn ``code``, in a file whose name has ``file``."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append((code, make, file))
        return make

    return register


def linux(**options: object) -> Recipe:
    """Return a wheel with one ELF library."""
    return Recipe(**{"tag": LINUX_TAG, "files": {"demo/demo.so": elf()}, **options})  # type: ignore[arg-type]


def mac(data: bytes, tag: str = MAC_TAG, **others: bytes) -> Recipe:
    """Return a wheel with one Mach-O library, and others beside it."""
    files = {f"demo/{name}.dylib": content for name, content in others.items()}
    return Recipe(tag=tag, files={"demo/libdemo.dylib": data, **files})


# ---------------------------------------------------------------- the zip file


def patched(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> Path:
    path.write_bytes(bytes(change(bytearray(path.read_bytes()))))
    return path


@case("zip-encrypted", "demo/__init__.py")
def _(folder: Path) -> Path:
    def encrypt(data: bytearray) -> bytearray:
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        return data

    return patched(Recipe().write(folder), encrypt)


@case("zip-overlap")
def _(folder: Path) -> Path:
    def second_starts_in_first(data: bytearray) -> bytearray:
        second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
        struct.pack_into("<I", data, second + 42, 0)
        return data

    return patched(Recipe().write(folder), second_starts_in_first)


@case("zip-bomb")
def _(folder: Path) -> Path:
    path = Recipe().write(folder)
    with zipfile.ZipFile(path, "a") as archive, archive.open(entry("demo/zeros"), "w") as target:
        for _ in range(300):
            target.write(bytes(1024 * 1024))
    return path


@case("zip-corrupt", "demo/__init__.py")
def _(folder: Path) -> Path:
    def flip(data: bytearray) -> bytearray:
        data[30 + len("demo/__init__.py") + 2] ^= 0xFF
        return data

    return patched(Recipe().write(folder), flip)


@case("zip-corrupt", "demo/__init__.py")
def _(folder: Path) -> Path:
    def two_names(data: bytearray) -> bytearray:
        data[30:34] = b"evil"
        return data

    return patched(Recipe().write(folder), two_names)


@case("zip-compression")
def _(folder: Path) -> Path:
    path = Recipe().write(folder)
    with zipfile.ZipFile(path, "a") as archive:
        info = entry("demo/other")
        info.compress_type = zipfile.ZIP_LZMA
        archive.writestr(info, b"abc" * 100)
    return path


@case("zip-leading-data")
def _(folder: Path) -> Path:
    return patched(Recipe().write(folder), lambda data: b"#!/bin/sh\n" + data)


@case("zip-trailing-data")
def _(folder: Path) -> Path:
    return patched(Recipe().write(folder), lambda data: data + b"more")


@case("zip-hidden-data")
def _(folder: Path) -> Path:
    path = folder / f"demo-1.0-{Recipe().tag}.whl"
    contents = Recipe().contents()
    contents[f"{INFO}/RECORD"] = record(contents)
    # An entry that the directory forgets: its bytes stay.
    pack(path, contents)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry("demo/forgotten"), b"hidden")
        archive.filelist.pop()
        archive.NameToInfo.pop("demo/forgotten")
        archive._didModify = True  # type: ignore[attr-defined]
    return path


# ---------------------------------------------------------------- names

UNSAFE = ["../evil.py", "/etc/evil", "demo/../../evil", "C:/evil", "demo\\evil.py", "demo/a\nb.py"]


def added(folder: Path, name: str, mode: int = 0o100644, data: bytes = b"x") -> Path:
    path = Recipe().write(folder)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile's own about duplicates
        archive.writestr(entry(name, mode), data)
    return path


for unsafe in UNSAFE:
    case("name-unsafe", unsafe.encode("unicode_escape").decode() if "\n" in unsafe else unsafe)(
        lambda folder, name=unsafe: added(folder, name)  # type: ignore[misc]
    )
case("name-duplicate", "demo/__init__.py")(lambda folder: added(folder, "demo/__init__.py"))
case("name-collision", "demo/__INIT__.py")(lambda folder: added(folder, "demo/__INIT__.py"))
case("name-not-portable", "demo/aux.py")(lambda folder: added(folder, "demo/aux.py"))
case("entry-special", "demo/link")(
    lambda folder: added(folder, "demo/link", 0o120777, b"/etc/passwd")
)
case("entry-special", "demo/pipe")(lambda folder: added(folder, "demo/pipe", 0o010644, b""))


@case("not-canonical")
def _(folder: Path) -> Path:
    path = Recipe().write(folder)
    with zipfile.ZipFile(path, "a") as archive:
        info = entry("demo/other.py")
        info.date_time = (2024, 1, 2, 3, 4, 6)
        archive.writestr(info, b"")
    return path


# ---------------------------------------------------------------- metadata


@case("filename-invalid")
def _(folder: Path) -> Path:
    return Recipe(filename="demo.zip").write(folder)


@case("dist-info-count")
def _(folder: Path) -> Path:
    files = {"demo/__init__.py": b"", "other-2.0.dist-info/METADATA": b""}
    return Recipe(files=files).write(folder)


case("dist-info-name")(lambda f: Recipe(filename="other-1.0-py3-none-any.whl").write(f))
case("wheel-file-missing")(lambda f: Recipe(without=(f"{INFO}/WHEEL",)).write(f))
for text in (
    b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    b"Wheel-Version: 9.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    b"Wheel-Version: 1.0\nRoot-Is-Purelib: perhaps\nTag: py3-none-any\n",
    b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
    b"\xff\xfe\0",
):
    case("wheel-file-invalid", "WHEEL")(lambda f, text=text: Recipe(wheel=text).write(f))  # type: ignore[misc]
case("wheel-tag-mismatch")(lambda f: Recipe(filename="demo-1.0-cp312-none-any.whl").write(f))
case("purelib-with-binaries")(lambda f: linux(purelib="true").write(f))
case("metadata-missing")(lambda f: Recipe(without=(f"{INFO}/METADATA",)).write(f))
case("metadata-invalid")(lambda f: Recipe(metadata=b"Name: demo\n").write(f))
case("metadata-early")(lambda f: Recipe(metadata=METADATA.replace(b"2.4", b"2.1")).write(f))
case("metadata-mismatch")(lambda f: Recipe(metadata=METADATA.replace(b"1.0", b"1.1")).write(f))
case("license-missing")(
    lambda f: Recipe(
        without=(f"{INFO}/licenses/LICENSE",),
        metadata=METADATA.replace(b"License-File: LICENSE\n", b""),
    ).write(f)
)
case("license-absent")(lambda f: Recipe(without=(f"{INFO}/licenses/LICENSE",)).write(f))


def entry_points(text: bytes) -> Callable[[Path], Path]:
    files = {**Recipe().files, f"{INFO}/entry_points.txt": text}
    return lambda folder: Recipe(files=files).write(folder)


case("entry-point-invalid")(entry_points(b"[console_scripts]\ndemo = not an object\n"))
case("entry-point-invalid")(entry_points(b"demo = demo:x\n"))
case("entry-point-missing")(entry_points(b"[console_scripts]\ndemo = demo.cli:main\n"))
case("entry-point-missing")(entry_points(b"[console_scripts]\ndemo = demo:main\n"))


def with_sbom(text: str) -> Callable[[Path], Path]:
    files = {**Recipe().files, f"{INFO}/sboms/demo.cdx.json": text.encode()}
    return lambda folder: Recipe(files=files).write(folder)


def cyclonedx(name: str, digest: str) -> str:
    return (
        '{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": ['
        f'{{"type": "file", "name": "{name}", "hashes": ['
        f'{{"alg": "SHA-256", "content": "{digest}"}}]}}]}}'
    )


case("sbom-invalid", "cdx.json")(with_sbom("{"))
case("sbom-invalid", "cdx.json")(
    with_sbom('{"bomFormat": "CycloneDX", "specVersion": "1.6", "x": 1}')
)
case("sbom-invalid", "cdx.json")(with_sbom('{"bomFormat": "CycloneDX", "specVersion": "77"}'))
case("sbom-invalid", "cdx.json")(with_sbom("[" * 100_000))
case("sbom-disagrees", "cdx.json")(with_sbom(cyclonedx("demo/__init__.py", "0" * 64)))
case("sbom-disagrees", "cdx.json")(with_sbom(cyclonedx("demo/gone.py", "0" * 64)))


def with_pack(index: str) -> Callable[[Path], Path]:
    files = {**Recipe().files, "demo/_native/shaders/index.json": index.encode()}
    return lambda folder: Recipe(files=files).write(folder)


case("shader-pack", "index.json")(with_pack("{"))
case("shader-pack", "index.json")(with_pack('{"format": 2}'))
case("shader-pack", "index.json")(with_pack('{"format": 1, "libraries": {"a": {"file": []}}}'))

# ---------------------------------------------------------------- RECORD


def with_record(change: Callable[[str], str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        recipe = Recipe()
        recipe.record = change(record(recipe.contents()).decode()).encode()
        return recipe.write(folder)

    return make


case("record-missing")(lambda f: Recipe(without=(f"{INFO}/RECORD",)).write(f))
case("record-invalid")(with_record(lambda text: text + "a,b\n"))
case("record-invalid")(with_record(lambda text: text + text))
case("record-unlisted", "demo/__init__.py")(with_record(lambda text: text.split("\n", 1)[1]))
case("record-absent", "demo/gone.py")(with_record(lambda text: text + "demo/gone.py,,\n"))
case("record-hash", "demo/__init__.py")(with_record(lambda text: text.replace("=", "=A", 1)))
case("record-hash", "demo/__init__.py")(with_record(lambda text: text.replace(",6\n", ",7\n", 1)))
case("record-weak", "demo/__init__.py")(with_record(lambda text: text.replace("sha256", "md5", 1)))

# ---------------------------------------------------------------- ELF

REQUIRING = METADATA.replace(b"\n\n", b"\nRequires-Dist: other\n\n")
NEW_GLIBC = "#include <pthread.h>\nint demo(pthread_t t) { return pthread_join(t, 0); }"

case("sbom-missing")(lambda f: linux(sbom=False).write(f))
case("binary-in-any")(lambda f: linux(tag="py3-none-any").write(f))
case("platform-without-binaries")(lambda f: Recipe(tag=LINUX_TAG).write(f))
case("binary-malformed", "demo.so")(lambda f: linux(files={"demo/demo.so": elf()[:3000]}).write(f))
case("wrong-platform", "demo.so")(lambda f: linux(tag="py3-none-manylinux_2_17_riscv64").write(f))
case("wrong-platform", "demo.so")(lambda f: linux(tag=MAC_TAG).write(f))
case("wrong-platform", "demo.so")(
    lambda f: linux(
        tag=LINUX_TAG.replace("manylinux_2_17", "musllinux_1_2"),
        files={"demo/demo.so": elf(NEW_GLIBC)},
    ).write(f)
)
case("wrong-platform", "demo.pyd")(
    lambda f: Recipe(tag="py3-none-win_arm64", files={"demo/demo.pyd": dll()}).write(f)
)


def with_elf(source: str, *flags: str, **options: bool) -> Callable[[Path], Path]:
    return lambda folder: linux(files={"demo/demo.so": elf(source, *flags, **options)}).write(
        folder
    )


PLAIN = "int demo(void) { return 1; }"
case("symbol-version", "demo.so")(with_elf(NEW_GLIBC))
case("install-name", "demo.so")(with_elf(PLAIN, "-Wl,-soname,/home/me/demo.so"))
case("rpath-outside", "demo.so")(with_elf(PLAIN, "-Wl,-rpath,/home/me/lib"))
case("rpath-outside", "demo.so")(with_elf(PLAIN, "-Wl,-rpath,$ORIGIN/../../.."))
case("build-path", "demo.so")(with_elf('const char *demo = "/home/somebody/work/demo.c";'))
case("executable-stack", "demo.so")(with_elf(PLAIN, "-Wl,-z,execstack"))
case("text-relocations", "demo.so")(
    with_elf('int demo = 1; __asm__(".text\\n.quad demo\\n");', "-Wl,-z,notext")
)
case("no-relro", "demo.so")(with_elf(PLAIN, "-Wl,-z,norelro"))
case("lazy-binding", "demo.so")(with_elf(PLAIN, "-Wl,-z,lazy"))
case("debug-information", "demo.so")(with_elf(PLAIN, "-g", strict=False))


@case("writable-executable", "demo.so")
def _(folder: Path) -> Path:
    data = bytearray(elf())
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, flags = struct.unpack_from("<II", data, table + index * size)
        if kind == 1 and flags & 1:
            struct.pack_into("<I", data, table + index * size + 4, flags | 2)
    return linux(files={"demo/demo.so": bytes(data)}).write(folder)


def needing(needed: str, *flags: str) -> bytes:
    """Compile a library that needs another, by that name."""
    path = scratch() / f"libother{len(needed)}.so"
    path.write_bytes(elf("int other(void) { return 2; }", f"-Wl,-soname,{needed}"))
    return elf("int other(void); int demo(void) { return other(); }", str(path), *flags)


case("dependency-outside", "demo.so")(
    lambda f: linux(files={"demo/demo.so": needing("/home/me/libother.so")}).write(f)
)
case("dependency-missing", "demo.so")(
    lambda f: linux(files={"demo/demo.so": needing("libother.so.9")}).write(f)
)
case("dependency-elsewhere", "demo.so")(
    lambda f: linux(
        files={"demo/demo.so": needing("libother.so.9", "-Wl,-rpath,$ORIGIN/../other")},
        metadata=REQUIRING,
    ).write(f)
)
case("needs-environment", "demo.so")(
    lambda f: linux(
        files={"demo/demo.so": needing("libother.so.9"), "demo/libs/libother.so.9": elf()}
    ).write(f)
)

case("needs-environment", "demo.so")(
    lambda f: linux(files={"demo/demo.so": needing("libother.so.9")}, metadata=REQUIRING).write(f)
)

# ---------------------------------------------------------------- Mach-O

USES_OTHER = "int needed0(void); int demo(void) { return needed0(); }"

case("binary-malformed", "libdemo.dylib")(lambda f: mac(dylib()[:4000]).write(f))
case("wrong-platform", "libdemo.dylib")(lambda f: mac(dylib(), tag=LINUX_TAG).write(f))
case("architecture-missing", "libdemo.dylib")(
    lambda f: mac(dylib(), tag="py3-none-macosx_15_0_universal2").write(f)
)
case("minimum-os", "libdemo.dylib")(
    lambda f: mac(dylib(), tag="py3-none-macosx_11_0_arm64").write(f)
)
case("install-name", "libdemo.dylib")(
    lambda f: mac(dylib(install_name="/Users/me/build/libdemo.dylib")).write(f)
)
case("rpath-outside", "libdemo.dylib")(lambda f: mac(dylib(rpaths=SWIFTPM_RPATHS)).write(f))
case("build-path", "libdemo.dylib")(lambda f: mac(dylib(rpaths=SWIFTPM_RPATHS)).write(f))
case("dependency-outside", "libdemo.dylib")(
    lambda f: mac(dylib(source=USES_OTHER, needs=("/opt/homebrew/lib/libx.dylib",))).write(f)
)
case("dependency-outside", "libdemo.dylib")(
    lambda f: mac(dylib(source=USES_OTHER, needs=("@loader_path/../../../libx.dylib",))).write(f)
)
case("dependency-missing", "libdemo.dylib")(
    lambda f: mac(dylib(source=USES_OTHER, needs=("@loader_path/libx.dylib",))).write(f)
)
case("needs-environment", "libdemo.dylib")(
    lambda f: mac(dylib(source=USES_OTHER, needs=("libx.dylib",))).write(f)
)
case("needs-environment", "libdemo.dylib")(
    lambda f: Recipe(
        tag=MAC_TAG,
        files={"demo/libdemo.dylib": dylib(source=USES_OTHER, needs=("@rpath/libx.dylib",))},
        metadata=REQUIRING,
    ).write(f)
)
case("signature-missing", "libdemo.dylib")(lambda f: mac(unsigned(dylib())).write(f))


@case("signature-invalid", "libdemo.dylib")
def _(folder: Path) -> Path:
    data = bytearray(dylib())
    at = data.index(b"@rpath/libdemo.dylib")
    data[at + 8] ^= 0x20
    return mac(bytes(data)).write(folder)


# ---------------------------------------------------------------- policies

POLICY = parse(
    """
    [files]
    required = ["demo/py.typed"]
    [abi]
    library = "demo/demo.so"
    declarations = "demo/api.cdef"
    """,
    "test",
)
NEEDS_POLICY = {"abi-missing", "abi-extra", "file-required"}


@case("abi-missing", "demo.so")
def _(folder: Path) -> Path:
    files = {"demo/demo.so": elf(), "demo/api.cdef": b"int absent(int);", "demo/py.typed": b""}
    return linux(files=files).write(folder)


@case("abi-extra", "demo.so")
def _(folder: Path) -> Path:
    files = {"demo/demo.so": elf(), "demo/api.cdef": b"/* int demo(void); */"}
    return linux(files=files).write(folder)


case("file-required")(lambda f: linux().write(f))

# ---------------------------------------------------------------- the tests

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="compiles ELF files by gcc"
)


@pytest.mark.parametrize(
    ("code", "make", "file"), CASES, ids=[f"{number}-{c[0]}" for number, c in enumerate(CASES)]
)
def test_a_defect_earns_its_code(
    code: str, make: Callable[[Path], Path], file: str, tmp_path: Path
) -> None:
    wheel = make(tmp_path)
    before = wheel.read_bytes()
    report = audit(wheel, POLICY if code in NEEDS_POLICY else None)
    hits = [each for each in report.findings if each.code == code]
    assert hits, sorted({each.code for each in report.findings})
    assert any(file in each.file for each in hits), [each.file for each in hits]
    assert all(each.what and each.mend for each in hits)
    assert wheel.read_bytes() == before, "an audit changes nothing"
    assert list(tmp_path.iterdir()) == [wheel], "an audit leaves nothing behind"


def test_every_code_has_a_case() -> None:
    assert {code for code, _, _ in CASES} == set(CODES)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe, id="pure"),
        pytest.param(linux, id="linux"),
        pytest.param(
            lambda: linux(
                files={
                    "demo/demo.so": needing("libother.so.9", "-Wl,-rpath,$ORIGIN/../demo.libs"),
                    "demo.libs/libother.so.9": elf(),
                }
            ),
            id="linux, two libraries",
        ),
        pytest.param(lambda: mac(dylib(rpaths=("/usr/lib/swift", "@loader_path"))), id="macos"),
        pytest.param(
            lambda: mac(
                dylib(
                    source=USES_OTHER, needs=("@rpath/libneeded0.dylib",), rpaths=("@loader_path",)
                ),
                libneeded0=dylib(name="libneeded0.dylib", source="int needed0(void){return 0;}"),
            ),
            id="macos, two libraries",
        ),
        pytest.param(
            lambda: mac(
                universal(dylib(), dylib(architecture="x86_64")),
                tag="py3-none-macosx_15_0_universal2",
            ),
            id="macos, universal",
        ),
        pytest.param(
            lambda: Recipe(tag="py3-none-win_amd64", files={"demo/demo.pyd": dll()}), id="windows"
        ),
    ],
)
def test_a_sound_wheel_earns_nothing(recipe: Callable[[], Recipe], tmp_path: Path) -> None:
    report = audit(recipe().write(tmp_path))
    assert report.findings == ()
    assert not report.failed
