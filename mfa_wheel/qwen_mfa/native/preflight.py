"""Looks at a shared library's first bytes, so that the loader never meets a file that crashes it.

``dlopen`` of a truncated file can end the process with SIGBUS, and its text for a foreign
architecture says little. Formats: the System V ABI (ELF) and Apple's ``mach-o/loader.h``.
"""

from __future__ import annotations

import platform
import struct
import sys
from typing import TYPE_CHECKING

from qwen_mfa import files

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 << 20  # ours have some 200 KiB; with debugging information, 20 MiB
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_MACHO_CPUS = {0x01000007: "x86_64", 0x0100000C: "arm64"}
_MACHO_MAGIC_64 = 0xFEEDFACF
_MACHO_UNIVERSAL = 0xCAFEBABE
_LC_SEGMENT_64 = 0x19
_SAME = {"arm64": "aarch64", "amd64": "x86_64"}


def why_not_loadable(path: Path) -> str | None:
    """Return why this process cannot load ``path``, or ``None`` if nothing speaks against it."""
    try:
        data = files.read(path, MAX_BYTES)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if not data:
        return "it is empty"
    try:
        if data[:4] == b"\x7fELF":
            return _wrong_format("Linux") or _elf(data)
        (magic,) = struct.unpack_from("<I", data)
        (big,) = struct.unpack_from(">I", data)
        if magic == _MACHO_MAGIC_64 or big == _MACHO_UNIVERSAL:
            return _wrong_format("macOS") or _macho(data)
    except struct.error:
        return "it is truncated"
    return "it is not a shared library"


def _wrong_format(system: str) -> str | None:
    here = {"linux": "Linux", "darwin": "macOS"}.get(sys.platform, sys.platform)
    return None if here == system else f"it was built for {system}, and this is {here}"


def _wrong_machine(machine: str) -> str | None:
    here = platform.machine().lower()
    if _SAME.get(machine, machine) == _SAME.get(here, here):
        return None
    return f"it was built for {machine}, and this Python runs on {here}"


def _elf(data: bytes) -> str | None:
    if data[4] != 2 or data[5] != 1:
        return "it is not a 64-bit little-endian library"
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 3:
        return "it is not a shared library (ET_DYN)"
    wrong = _wrong_machine(_ELF_MACHINES.get(machine, f"ELF machine {machine}"))
    if wrong:
        return wrong
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        offset, _, _, length = struct.unpack_from("<QQQQ", data, table + index * size + 8)
        if offset + length > len(data):
            return f"it is truncated ({len(data)} bytes, {offset + length} expected)"
    return None


def _macho(data: bytes) -> str | None:
    start = 0
    if struct.unpack_from(">I", data)[0] == _MACHO_UNIVERSAL:
        found = None
        (count,) = struct.unpack_from(">I", data, 4)
        for index in range(min(count, 16)):
            cpu, _, offset, _ = struct.unpack_from(">IIII", data, 8 + 20 * index)
            if _wrong_machine(_MACHO_CPUS.get(cpu, "?")) is None:
                found = offset
        if found is None:
            return "it holds no code for this architecture"
        start = found
    _, cpu, _, _, commands = struct.unpack_from("<IIIII", data, start)
    wrong = _wrong_machine(_MACHO_CPUS.get(cpu, f"Mach-O CPU {cpu:#x}"))
    if wrong:
        return wrong
    at = start + 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == _LC_SEGMENT_64:
            offset, length = struct.unpack_from("<QQ", data, at + 40)
            if start + offset + length > len(data):
                return f"it is truncated ({len(data)} bytes, {start + offset + length} expected)"
        if size < 8:
            return "its load commands are damaged"
        at += size
    return None
