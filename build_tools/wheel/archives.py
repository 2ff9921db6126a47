"""Read wheels and source distributions that nobody vouches for, in bounded time and memory."""

from __future__ import annotations

import calendar
import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_tools.support.console import printable
from build_tools.support.errors import BuildToolsError

MAX_SIZE = 128 * 1024**2  # of a file, and of what is in it
MAX_DIRECTORY = 4 * 1024**2
END, END_SIZE, MAX_COMMENT = b"PK\x05\x06", 22, 65_535
ZIP64_LOCATOR, LOCATOR_SIZE = b"PK\x06\x07", 20
MAX_TEXT = 8 * 1024**2
UNSAFE = re.compile(r"\\|^/|^[A-Za-z]:|(^|/)\.\.?(/|$)|//|^$")
# What the libraries raise on hostile input, beside their own errors.
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
)


class UnreadableError(BuildToolsError):
    """The file is no archive that may be read; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of an archive."""

    content: bytes
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A whole archive: its bytes, its files by name, and the time of its first entry (epoch)."""

    data: bytes
    entries: dict[str, Entry]
    moment: int

    def text(self, name: str) -> str:
        """Return a file as text, "" when there is none; what is no UTF-8 is escaped, length cut."""
        entry = self.entries.get(name)
        return entry.content[:MAX_TEXT].decode("utf-8", "backslashreplace") if entry else ""


def read(path: Path) -> Archive:
    """Read a wheel or a ``.tar.gz``; nothing is executed or unpacked to disk.

    Raises:
        UnreadableError: It is neither, too large, or holds what no such archive may hold.

    """
    name = printable(path.name)
    again = "Build or download it again."
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            msg = f"{name} is {kind}. Give the path of a wheel or a source distribution."
            raise UnreadableError(msg)
        if path.stat().st_size > MAX_SIZE:
            msg = f"{name}: {path.stat().st_size:,} bytes are more than any file of ours. {again}"
            raise UnreadableError(msg)
        data = path.read_bytes()
        found = _tar(data) if path.name.endswith(".tar.gz") else _zip(data)
        entries: dict[str, Entry] = {}
        moment = 0
        for entry_name, entry, time in found:
            safe = entry_name.isprintable() and not UNSAFE.search(entry_name)
            if not safe or entry_name in entries:
                fault = "twice there" if safe else "no safe name"
                msg = f"{name}: {printable(entry_name)} is {fault}. {again}"
                raise UnreadableError(msg)
            moment = moment or time
            entries[entry_name] = entry
    except ARCHIVE_ERRORS as error:
        msg = f"{name} cannot be read: {printable(str(error)[:400])}. {again}"
        raise UnreadableError(msg) from error
    return Archive(data=data, entries=entries, moment=moment)


def _zip(data: bytes) -> Iterator[tuple[str, Entry, int]]:
    reach = END_SIZE + MAX_COMMENT + LOCATOR_SIZE
    tail = data[-reach:]
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        msg = f"it is not a zip file, or cut short ({len(data):,} bytes, no end record)"
        raise zipfile.BadZipFile(msg)
    # zipfile reads the whole directory, however large, before it says anything.
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size > MAX_DIRECTORY or tail[max(at - LOCATOR_SIZE, 0) :].startswith(ZIP64_LOCATOR):
        msg = f"its directory takes {size:,} bytes; no wheel of ours has that many files"
        raise zipfile.BadZipFile(msg)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = [each for each in archive.infolist() if not each.filename.endswith("/")]
        total = sum(each.file_size for each in infos)
        if total > MAX_SIZE:
            msg = f"unpacked it would have {total:,} bytes"
            raise zipfile.BadZipFile(msg)
        for info in infos:
            mode = info.external_attr >> 16 if info.create_system == 3 else 0
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
                msg = f"{info.filename!r} is a link or a special file"
                raise zipfile.BadZipFile(msg)
            entry = Entry(content=archive.read(info), executable=bool(mode & 0o100))
            yield info.orig_filename, entry, calendar.timegm((*info.date_time, 0, 0, 0))


def _tar(data: bytes) -> Iterator[tuple[str, Entry, int]]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        unpacked = stream.read(MAX_SIZE + 1)
    if len(unpacked) > MAX_SIZE:
        msg = f"unpacked it has more than {MAX_SIZE:,} bytes"
        raise tarfile.TarError(msg)
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
        for member in archive:
            if member.isdir():
                continue
            source = archive.extractfile(member) if member.isreg() else None
            if source is None:
                msg = f"{member.name!r} is a link or a special file"
                raise tarfile.TarError(msg)
            entry = Entry(content=source.read(), executable=bool(member.mode & 0o100))
            yield member.name, entry, int(member.mtime)
