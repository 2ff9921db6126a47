"""Open a wheel as a zip file that nobody vouches for: first its structure, then its contents."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from build_tools.audit.findings import Finding, UnreadableWheelError, found

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

END, LOCAL = b"PK\x05\x06", b"PK\x03\x04"
END_SIZE, LONGEST_COMMENT = 22, 65_535
LARGEST_DIRECTORY = 8 * 1024 * 1024
LARGEST_CONTENTS = 8 * 1024**3
SUSPECT_SIZE, SUSPECT_RATIO = 256 * 1024 * 1024, 200
CHUNK = 1024 * 1024
ENCRYPTED, DESCRIPTOR = 0x1, 0x8
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# What zipfile raises on hostile input, beside its own error.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An open wheel. ``readable`` is false when reading contents would be unsafe."""

    path: Path
    zip: zipfile.ZipFile
    entries: tuple[zipfile.ZipInfo, ...]
    findings: tuple[Finding, ...]
    readable: bool

    @property
    def files(self) -> tuple[zipfile.ZipInfo, ...]:
        """The entries that are regular files."""
        return tuple(info for info in self.entries if not is_folder(info) and not is_special(info))

    def chunks(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        """Unpack one entry piece by piece; raise one of `ZIP_ERRORS` when it is corrupt."""
        with self.zip.open(info) as source:
            while piece := source.read(CHUNK):
                yield piece


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Say whether an entry stands for a folder (zipfile's own test fails on empty names)."""
    return info.filename.endswith("/")


def is_special(info: zipfile.ZipInfo) -> bool:
    """Say whether an entry claims to be a link, a device, a socket or a pipe."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return info.create_system == 3 and kind not in {0, stat.S_IFREG, stat.S_IFDIR}


def open_archive(path: Path, file: BinaryIO) -> Archive:
    """Check the structure of the zip file ``file``, which was opened from ``path``.

    Raises:
        UnreadableWheelError: It is no zip file, or its directory is cut or implausibly large.

    """
    size = file.seek(0, 2)
    end = _find_end(path, file, size)
    try:
        opened = zipfile.ZipFile(file)
    except ZIP_ERRORS as error:
        msg = f"{path.name}: not a readable zip file ({error}). Build or download it again."
        raise UnreadableWheelError(msg) from error
    entries = tuple(opened.infolist())
    if not entries:
        opened.close()
        msg = f"{path.name}: an empty zip file, not a wheel. Build or download it again."
        raise UnreadableWheelError(msg)
    findings = list(_structure(path.name, file, entries, opened.start_dir))
    if end.after:
        findings.append(
            found("zip-trailing-data", path.name, f"{end.after} bytes after the zip file's end")
        )
    total = sum(info.file_size for info in entries)
    if total > LARGEST_CONTENTS or (total > SUSPECT_SIZE and total > SUSPECT_RATIO * size):
        what = f"{total:,} bytes unpacked from {size:,}"
        findings.append(found("zip-bomb", path.name, what))
    unsafe = {"zip-overlap", "zip-bomb"}
    return Archive(
        path=path,
        zip=opened,
        entries=entries,
        findings=tuple(findings),
        readable=not any(finding.code in unsafe for finding in findings),
    )


@dataclass(frozen=True, kw_only=True)
class _End:
    after: int  # bytes after the end record and its comment


def _find_end(path: Path, file: BinaryIO, size: int) -> _End:
    """Find the end record, and refuse directories that would take too much memory to read."""
    reach = min(size, END_SIZE + LONGEST_COMMENT)
    file.seek(size - reach)
    tail = file.read(reach)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        msg = (
            f"{path.name}: not a zip file, or cut short ({size:,} bytes, no end record)."
            " Build or download it again."
        )
        raise UnreadableWheelError(msg)
    directory, _, comment = struct.unpack("<IIH", tail[at + 12 : at + END_SIZE])
    # 0xFFFFFFFF points to a zip64 record; then the space before the end record is the bound.
    position = size - reach + at
    claimed = position if directory == 0xFFFFFFFF else directory
    if claimed > LARGEST_DIRECTORY and (directory != 0xFFFFFFFF or _zip64_size(file, position)):
        msg = f"{path.name}: its directory takes {claimed:,} bytes; no wheel has that many files."
        raise UnreadableWheelError(msg)
    return _End(after=max(len(tail) - at - END_SIZE - comment, 0))


def _zip64_size(file: BinaryIO, position: int) -> bool:
    """Say whether the zip64 record before ``position`` states too large a directory."""
    file.seek(max(position - 20, 0))
    locator = file.read(20)
    if locator[:4] != b"PK\x06\x07":
        return False  # zipfile refuses it
    (offset,) = struct.unpack("<Q", locator[8:16])
    if offset >= position:
        return False
    file.seek(offset)
    record = file.read(56)
    return len(record) < 56 or struct.unpack("<Q", record[40:48])[0] > LARGEST_DIRECTORY


def _structure(
    wheel: str, file: BinaryIO, entries: tuple[zipfile.ZipInfo, ...], directory: int
) -> Iterator[Finding]:
    """Walk the entries in the order of the file and see that they fit between each other."""
    end, previous = 0, ""
    for info in sorted(entries, key=lambda each: each.header_offset):
        name = info.filename
        if info.flag_bits & ENCRYPTED:
            yield found("zip-encrypted", name, "this entry is encrypted")
        if info.compress_type not in METHODS:
            yield found("zip-compression", name, f"compression method {info.compress_type}")
        if info.header_offset < end:
            yield found("zip-overlap", name, f"starts inside of {previous or 'another entry'}")
        elif info.header_offset > end:
            gap = info.header_offset - end
            code = "zip-hidden-data" if previous else "zip-leading-data"
            yield found(code, name if previous else wheel, f"{gap} bytes before this entry")
        length, problem = _local(file, info)
        if problem:
            yield found("zip-corrupt", name, problem)
        end, previous = max(end, info.header_offset + length), name
    if end > directory:
        yield found("zip-overlap", previous, "reaches into the zip file's directory")
    elif end < directory:
        yield found(
            "zip-hidden-data", wheel, f"{directory - end} bytes between entries and directory"
        )


def _local(file: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, str]:
    """Return how many bytes the entry takes with its local header, and what is wrong with it."""
    file.seek(info.header_offset)
    raw = file.read(30)
    if len(raw) < 30 or raw[:4] != LOCAL:
        return 30 + info.compress_size, "there is no local header where the directory points"
    flags, method, _, _, crc, packed, _, name_size, extra_size = struct.unpack(
        "<HHHHIIIHH", raw[6:30]
    )
    name = file.read(name_size)
    file.seek(extra_size, 1)
    length = 30 + name_size + extra_size + info.compress_size
    encoding = "utf-8" if flags & 0x800 else "cp437"
    problem = ""
    if name.decode(encoding, "backslashreplace") != info.orig_filename:
        problem = "its local header has another name than the directory"
    elif method != info.compress_type:
        problem = "its local header has another compression than the directory"
    elif flags & DESCRIPTOR:
        file.seek(info.compress_size, 1)
        length += _descriptor(file, info)
    elif packed != 0xFFFFFFFF and (crc, packed) != (info.CRC, info.compress_size):
        problem = "its local header has another size or checksum than the directory"
    return length, problem


def _descriptor(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return the size of the data descriptor after an entry: 12 to 24 bytes, signature optional."""
    raw = file.read(24)
    lead = 4 if raw[:4] == b"PK\x07\x08" else 0
    wide = struct.pack("<IQQ", info.CRC, info.compress_size, info.file_size)
    return lead + (20 if raw[lead : lead + 20] == wide else 12)
