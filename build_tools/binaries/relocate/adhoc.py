"""Sign a thin Mach-O file ad hoc, byte for byte as LLVM's linker does.

Layout after Apple's cs_blobs.h (xnu) and the code signature section of LLVM's lld: one superblob
with one code directory, SHA-256 of every 4 KiB page, flags "ad hoc" and "linker-signed". That is
what every library has that Xcode's or LLVM's linker wrote for arm64, so dyld and `codesign` know
it, and it depends on nothing but the file: the same bytes on macOS and on Linux.
"""

from __future__ import annotations

import hashlib
import struct

from build_tools.binaries import macho
from build_tools.binaries.reader import Malformed
from build_tools.support.errors import RelocationError

SUPERBLOB, CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
SHA256, SHA256_SIZE = 2, 32
VERSION = 0x20400  # the first with an executable segment
ADHOC_LINKER_SIGNED = 0x20002
MAIN_BINARY = 1
SUPERBLOB_HEAD = 24  # header and one index entry, rounded up to 8
DIRECTORY_HEAD = 88
SEGMENT_PAGE = 0x4000  # of arm64; also a multiple of x86_64's


def sign(data: bytes, *, identifier: str) -> bytes:
    """Return the thin 64-bit file ``data`` with a fresh signature in place of any old one.

    Args:
        data: The file.
        identifier: What the signature calls it; the file's name, as linkers do.

    Raises:
        RelocationError: The file has no room for the load command, or its layout is unknown.

    """
    part = read_sound(data, identifier)
    linkedit = part.segment("__LINKEDIT")
    text = part.segment("__TEXT")
    if linkedit is None or text is None:
        msg = f"{identifier} has no __TEXT or __LINKEDIT segment, so it cannot be signed"
        raise RelocationError(msg)
    end = linkedit.file_offset + linkedit.file_size
    if end != len(data):
        msg = f"{identifier} goes on for {len(data) - end} bytes after its last segment"
        raise RelocationError(msg)
    if part.signature is not None:
        end, size = part.signature
        if end + size != len(data):
            msg = f"{identifier} has its signature elsewhere than at its end"
            raise RelocationError(msg)
    limit = _align(end, 16)
    body = bytearray(data[:end].ljust(limit, b"\0"))
    size = _size(limit, identifier)
    _point(body, part, limit, size)
    _grow(body, part, limit + size - linkedit.file_offset)
    executable = MAIN_BINARY if part.file_type == macho.MH_EXECUTE else 0
    region = (text.file_offset, text.file_size, executable)
    blob = _superblob(bytes(body), identifier, region)
    return bytes(body) + blob.ljust(size, b"\0")


def read_sound(data: bytes, name: str) -> macho.MachO:
    """Read a thin Mach-O file; raise `RelocationError` for anything else."""
    try:
        return macho.read(data)
    except Malformed as error:
        msg = f"{name} is no sound Mach-O file: {error}"
        raise RelocationError(msg) from error


def _align(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _hashes_at(identifier: str) -> int:
    """Return where the hashes start, from the start of the superblob."""
    return _align(SUPERBLOB_HEAD + DIRECTORY_HEAD + len(identifier.encode()) + 1, 16)


def _size(limit: int, identifier: str) -> int:
    return _align(_hashes_at(identifier) + -(-limit // PAGE) * SHA256_SIZE, 16)


def _point(body: bytearray, part: macho.MachO, offset: int, size: int) -> None:
    """Write LC_CODE_SIGNATURE, appending it where there is none."""
    for command in part.commands:
        if command.kind == macho.LC_CODE_SIGNATURE:
            struct.pack_into("<II", body, command.offset + 8, offset, size)
            return
    last = part.commands[-1] if part.commands else None
    at = last.offset + last.size if last else macho.HEADER
    room = min((each.lowest_section for each in part.segments if each.lowest_section), default=at)
    if at + 16 > room:
        msg = "There is no room for LC_CODE_SIGNATURE; link with -headerpad_max_install_names."
        raise RelocationError(msg)
    struct.pack_into("<4I", body, at, macho.LC_CODE_SIGNATURE, 16, offset, size)
    count, total = struct.unpack_from("<II", body, 16)
    struct.pack_into("<II", body, 16, count + 1, total + 16)


def _grow(body: bytearray, part: macho.MachO, size: int) -> None:
    """Write the new size of __LINKEDIT, in the file and in memory."""
    for command in part.commands:
        if command.kind == macho.LC_SEGMENT_64:
            name = bytes(body[command.offset + 8 : command.offset + 24]).rstrip(b"\0")
            if name == b"__LINKEDIT":
                memory = _align(size, SEGMENT_PAGE)
                struct.pack_into("<Q", body, command.offset + 32, memory)
                struct.pack_into("<Q", body, command.offset + 48, size)


def _superblob(body: bytes, identifier: str, region: tuple[int, int, int]) -> bytes:
    limit = len(body)
    hashes_at = _hashes_at(identifier)
    pages = -(-limit // PAGE)
    size = _size(limit, identifier)
    head = struct.pack(
        ">5I",
        SUPERBLOB,
        size,
        1,  # blobs
        0,  # slot: the code directory
        SUPERBLOB_HEAD,
    ).ljust(SUPERBLOB_HEAD, b"\0")
    directory = struct.pack(
        ">9I4BIIIIQQQQ",
        CODE_DIRECTORY,
        size - SUPERBLOB_HEAD,
        VERSION,
        ADHOC_LINKER_SIGNED,
        hashes_at - SUPERBLOB_HEAD,
        DIRECTORY_HEAD,
        0,  # special slots
        pages,
        limit,
        SHA256_SIZE,
        SHA256,
        0,  # platform
        PAGE_SHIFT,
        0,  # spare
        0,  # scatter
        0,  # team
        0,  # spare
        0,  # 64-bit code limit
        *region,
    )
    named = (head + directory + identifier.encode() + b"\0").ljust(hashes_at, b"\0")
    hashes = [
        hashlib.sha256(body[start : start + PAGE]).digest() for start in range(0, limit, PAGE)
    ]
    return named + b"".join(hashes)
