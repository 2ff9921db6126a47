"""Wheels and libraries for the tests: sound ones, and ones with exactly one thing wrong."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import platform
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from build_tools.audit.names import canonical_key

ROOT = Path(__file__).resolve().parents[3]
MACHINE = platform.machine()
LINUX_TAG = f"py3-none-manylinux_2_17_{MACHINE}"
MAC_TAG = "py3-none-macosx_15_0_arm64"
INFO = "demo-1.0.dist-info"
METADATA = b"""\
Metadata-Version: 2.4
Name: demo
Version: 1.0
License-File: LICENSE

Some words.
"""

needs_cc = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="compiles ELF files by gcc"
)


@dataclass(kw_only=True)
class Recipe:
    """What goes into a wheel; the defaults make a sound one without binaries."""

    files: dict[str, bytes] = field(default_factory=lambda: {"demo/__init__.py": b"x = 1\n"})
    tag: str = "py3-none-any"
    wheel: bytes | None = None
    metadata: bytes = METADATA
    record: bytes | None = None
    without: tuple[str, ...] = ()
    filename: str = ""
    purelib: str = ""
    sbom: bool = True

    def contents(self) -> dict[str, bytes]:
        """Return every file but RECORD."""
        pure = self.purelib or ("true" if self.tag.endswith("-any") else "false")
        tags = "".join(f"Tag: {tag}\n" for tag in expanded(self.tag))
        generated = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\n{tags}\n"
        info = {
            f"{INFO}/METADATA": self.metadata,
            f"{INFO}/WHEEL": generated.encode() if self.wheel is None else self.wheel,
            f"{INFO}/licenses/LICENSE": b"Do what you like.\n",
        }
        if self.sbom:
            info[f"{INFO}/sboms/demo.spdx"] = b"SPDXVersion: SPDX-2.3\n"
        return {n: d for n, d in {**self.files, **info}.items() if n not in self.without}

    def write(self, folder: Path) -> Path:
        """Write the wheel into ``folder``."""
        contents = self.contents()
        name = f"{INFO}/RECORD"
        if name not in self.without:
            contents[name] = record(contents) if self.record is None else self.record
        path = folder / (self.filename or f"demo-1.0-{self.tag}.whl")
        pack(path, contents)
        return path


def expanded(tag: str) -> list[str]:
    """Return the single tags of a compressed one."""
    python, abi, platforms = tag.split("-")
    return [f"{python}-{abi}-{each}" for each in platforms.split(".")]


def record(contents: dict[str, bytes]) -> bytes:
    """Return a true RECORD."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(data)])
    writer.writerow([f"{INFO}/RECORD", "", ""])
    return text.getvalue().encode()


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    """Return the canonical entry of that name."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = mode << 16
    return info


def pack(path: Path, contents: dict[str, bytes]) -> None:
    """Write a canonical zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(contents, key=canonical_key):
            archive.writestr(entry(name), contents[name])


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
        "-O2", "-g0", "-shared", "demo.c", "-o", name, "-L.", *link, *flags,
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


def dll(machine: int = 0x8664) -> bytes:
    """Return the headers of a Windows library, all that an audit reads."""
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return dos + b"PE\0\0" + struct.pack("<HHIIIHH", machine, 0, 0, 0, 0, 0, 0x2000)
