"""Wheels and libraries for the tests: sound ones, and ones with exactly one thing wrong."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from build_tools.binaries.relocate.macho import relocate
from build_tools.wheel import canonical, manifest, sbom
from build_tools.wheel.archives import Entry

ROOT = Path(__file__).resolve().parents[3]
MACHINE = platform.machine()
VERSION = "1.0"
LINUX_TAG = f"manylinux_2_17_{MACHINE}"
MAC_TAG = "macosx_15_0_arm64"
INFO = f"qwen_mfa-{VERSION}.dist-info"
TOP = f"qwen_mfa-{VERSION}"
NATIVE = manifest.NATIVE
CDEF = b"/* what the package calls */\nint mfa_demo(void);\nvoid free(void *);\n"
SOURCE = "int mfa_demo(void) { return 1; }"
METADATA = f"""\
Metadata-Version: 2.4
Name: qwen-mfa
Version: {VERSION}
License-File: LICENSE

Some words.
""".encode()
# zig's linker exports these from macOS libraries; Apple's does not.
ZIG_EXPORTS = ("_mh_dylib_header", "__dso_handle")

needs_cc = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="compiles ELF files by gcc"
)


@dataclass(kw_only=True)
class MadeWheel:
    """What goes into a wheel; the defaults make a sound one without a library.

    Attributes:
        library: Its bytes, for a wheel of the platform ``tag``; manifest and SBOM follow from it.
        files: More files, or other contents; None leaves a file out.
        facts: More of the manifest, or other values.
        record: Another RECORD than the true one.

    """

    tag: str = "any"
    library: bytes | None = None
    files: dict[str, bytes | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    record: bytes | None = None
    filename: str = ""

    def entries(self) -> dict[str, Entry]:
        """Return every file, RECORD included."""
        contents: dict[str, bytes | None] = {
            "qwen_mfa/__init__.py": b"x = 1\n",
            "qwen_mfa/cli/__init__.py": b"def main(): ...\n",
            "qwen_mfa/native/abi.cdef": CDEF,
            "qwen_mfa/py.typed": b"",
            f"{INFO}/METADATA": METADATA,
            f"{INFO}/WHEEL": self._wheel().encode(),
            f"{INFO}/entry_points.txt": b"[console_scripts]\nqwen-mfa = qwen_mfa.cli:main\n",
            f"{INFO}/licenses/LICENSE": b"Do what you like.\n",
            f"{INFO}/top_level.txt": b"qwen_mfa\n",
            f"{INFO}/RECORD": b"",
            **self._native(),
            **self.files,
        }
        entries = {
            name: Entry(content=data, executable=name.endswith((".so", ".dylib")))
            for name, data in contents.items()
            if data is not None
        }
        if f"{INFO}/RECORD" in entries:
            true = canonical.record(entries) if self.record is None else self.record
            entries[f"{INFO}/RECORD"] = Entry(content=true)
        return entries

    def write(self, folder: Path) -> Path:
        """Write the wheel into ``folder``."""
        path = folder / (self.filename or f"{TOP}-py3-none-{self.tag}.whl")
        path.write_bytes(canonical.pack_wheel(self.entries(), canonical.ZIP_EPOCH))
        return path

    def _wheel(self) -> str:
        pure = "true" if self.tag == "any" else "false"
        return f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\nTag: py3-none-{self.tag}\n\n"

    def _native(self) -> dict[str, bytes]:
        if self.library is None:
            return {}
        name = "libMFAFFI.dylib" if self.tag.startswith("macosx") else "libMFAFFI.so"
        digest = hashlib.sha256(self.library).hexdigest()
        told = {
            "schema": manifest.SCHEMA,
            "package": {"name": "qwen-mfa", "version": VERSION},
            "platform_tag": self.tag,
            "build_fingerprint": "f" * 64,
            "files": {name: digest},
            "engine": "portable",
            "built_by": "cc",
            "compiler": "gcc 99",
            "flags": ["-O3"],
            "sources": {"swift_pkg/a.c": "a" * 64},
            "library": {"file": name, "sha256": digest, "size": len(self.library)},
        }
        bom = sbom.render(told, folder=NATIVE).encode()
        return {
            f"{NATIVE}/{name}": self.library,
            manifest.MANIFEST: manifest.render({**told, **self.facts}).encode(),
            f"{INFO}/sboms/{sbom.NAME}": bom,
        }


def linux(source: str = SOURCE, *flags: str, **options: Any) -> MadeWheel:
    """Return a wheel with an ELF library."""
    return MadeWheel(**{"tag": LINUX_TAG, "library": engine(source, *flags), **options})


def mac(data: bytes | None = None, **options: Any) -> MadeWheel:
    """Return a wheel with a Mach-O library."""
    library = mac_engine() if data is None else data
    return MadeWheel(**{"tag": MAC_TAG, "library": library, **options})


def sdist(folder: Path, files: dict[str, bytes | None] | None = None) -> Path:
    """Write a sound source distribution, but for ``files``."""
    contents: dict[str, bytes | None] = {
        f"{TOP}/{name}": b"x\n"
        for name in (
            *("LICENSE", "pyproject.toml", "setup.py", "swift_pkg/Package.swift"),
            *("build_tools/__init__.py", "mfa_wheel/qwen_mfa/__init__.py"),
            *("swift_pkg/Sources/MFAFFI/a.c", "requirements/constraints.txt"),
        )
    }
    contents |= {f"{TOP}/PKG-INFO": METADATA, **(files or {})}
    entries = {name: Entry(content=data) for name, data in contents.items() if data is not None}
    path = folder / f"{TOP}.tar.gz"
    path.write_bytes(canonical.pack_sdist(entries, canonical.ZIP_EPOCH))
    return path


@cache
def elf(source: str = "int demo(void) { return 1; }", *flags: str, strict: bool = True) -> bytes:
    """Compile an ELF library by gcc, well hardened unless the flags say otherwise."""
    folder = scratch() / hashlib.sha256(repr((source, flags, strict)).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    (folder / "demo.c").write_text(source, encoding="utf-8")
    good = ["-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,-s"] if strict else []
    command = ["gcc", "-O1", "-fPIC", "-shared", *good, "demo.c", "-o", "demo.so", *flags]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "demo.so").read_bytes()


def engine(source: str = SOURCE, *flags: str, strict: bool = True) -> bytes:
    """Compile an ELF library that is fit for a wheel, unless the flags say otherwise."""
    return elf(source, "-Wl,-soname,libMFAFFI.so", *flags, strict=strict)


def mac_engine(source: str = SOURCE, **options: Any) -> bytes:
    """Compile and relocate a Mach-O library that is fit for a wheel."""
    return relocate(
        dylib(name="libMFAFFI.dylib", source=source, **options), filename="libMFAFFI.dylib"
    )


@cache
def scratch() -> Path:
    """Return a folder for what is compiled, one a process."""
    folder = ROOT / "build" / "test-libraries" / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


SWIFTPM_RPATHS = (
    "/usr/lib/swift",
    "@loader_path",
    "/Applications/Xcode_16.4.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib/swift-5.5/macosx",
    "/var/run/com.apple.security.cryptexd/mnt/com.apple.MobileAsset.MetalToolchain-v17/swift",
    "/Users/somebody/build/.build/arm64-apple-macosx/release",
)


@cache
def dylib(
    name: str = "libdemo.dylib",
    source: str = "int demo(void) { return 1; }",
    needs: tuple[str, ...] = (),
    rpaths: tuple[str, ...] = (),
    architecture: str = "arm64",
    minimum: str = "15.0",
    install_name: str = "",
    flags: tuple[str, ...] = (),
) -> bytes:
    """Cross-compile a real Mach-O library by zig; ``needs`` are install names of stubs to link."""
    key = repr((name, source, needs, rpaths, architecture, minimum, install_name, flags))
    folder = scratch() / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    (folder / "demo.c").write_text(source, encoding="utf-8")
    link = []
    for number, needed in enumerate(needs):
        stub = dylib(
            name=f"libneeded{number}.dylib",
            source=f"int needed{number}(void) {{ return {number}; }}",
            install_name=needed,
            architecture=architecture,
            minimum=minimum,
        )
        (folder / f"libneeded{number}.dylib").write_bytes(stub)
        link.append(f"-lneeded{number}")
    machine = {"arm64": "aarch64", "x86_64": "x86_64"}[architecture]
    command = [
        sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-macos.{minimum}",
        # Without the C library, which zig would compile first; libSystem is linked all the same.
        "-O2", "-g0", "-nostdlib", "-shared", "demo.c", "-o", name, "-L.", *link, *flags,
        f"-Wl,-install_name,{install_name or '@rpath/' + name}",
        "-Wl,-headerpad_max_install_names",
        *(f"-Wl,-rpath,{path}" for path in rpaths),
    ]  # fmt: skip
    env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(ROOT / "build" / "zig-cache")}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)
    return (folder / name).read_bytes()


def universal(*slices: bytes) -> bytes:
    """Join thin Mach-O files into a universal one, as lipo does."""
    shift = 14
    head = struct.pack(">II", 0xCAFEBABE, len(slices))
    offset, body = 1 << shift, b""
    for data in slices:
        cpu, kind = struct.unpack_from("<II", data, 4)
        head += struct.pack(">5I", cpu, kind, offset, len(data), shift)
        body += data.ljust(-(-len(data) // (1 << shift)) * (1 << shift), b"\0")
        offset = (1 << shift) + len(body)
    return head.ljust(1 << shift, b"\0") + body


def unsigned(data: bytes) -> bytes:
    """Return a thin little-endian library without its last load command, the signature's."""
    count, size = struct.unpack_from("<II", data, 16)
    at = 32 + size - 16
    assert struct.unpack_from("<I", data, at)[0] == 0x1D, "the signature comes last"
    head = data[:16] + struct.pack("<II", count - 1, size - 16) + data[24:at]
    return head + bytes(16) + data[at + 16 :]
