"""Write wheels and source distributions whose bytes depend on their contents alone.

Entries sorted, one time for all (SOURCE_DATE_EPOCH, else 1980, the first that a zip file can say),
modes 0644 or 0755, no owners, no extra fields, no folders. Nothing is compressed: what deflate
makes of a file depends on the zlib that Python was built with, and a wheel that is rebuilt
elsewhere could not be compared byte by byte.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from build_tools.support import files
from build_tools.support.console import printable
from build_tools.support.errors import BuildToolsError
from build_tools.wheel.archives import Entry, UnreadableError, read

ZIP_EPOCH = 315_532_800  # 1980-01-01T00:00:00Z
MAX_ZIP_TIME = 4_354_819_198  # 2107-12-31T23:59:58Z
REGULAR, EXECUTABLE = 0o100644, 0o100755
MAX_STORED = 65_535  # bytes of one stored block of deflate


class CanonicalError(BuildToolsError):
    """The archive cannot be rewritten; it was left as it is."""


def source_date_epoch() -> int:
    """Return the time to write, in seconds since 1970.

    Raises:
        CanonicalError: SOURCE_DATE_EPOCH is no time that a zip file can hold.

    """
    text = os.environ.get("SOURCE_DATE_EPOCH", str(ZIP_EPOCH))
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:20]) <= MAX_ZIP_TIME:
        msg = f"SOURCE_DATE_EPOCH={text!r} is no number of seconds since 1970 before 2108; unset it"
        raise CanonicalError(msg)
    return max(int(text), ZIP_EPOCH)


def canonical_key(name: str) -> tuple[bool, bool, str]:
    """Sort key of entries: the package first, then .dist-info, RECORD last, as PEP 427 advises."""
    metadata = name.split("/", 1)[0].endswith(".dist-info")
    return metadata, metadata and name.endswith("/RECORD"), name


def record_name(entries: Mapping[str, Entry]) -> str:
    """Return the name of a wheel's RECORD; raise `CanonicalError` unless there is exactly one."""
    found = [name for name in entries if name.endswith(".dist-info/RECORD")]
    if len(found) != 1:
        msg = f"a wheel has one RECORD, this one has {len(found)}"
        raise CanonicalError(msg)
    return found[0]


def record(entries: Mapping[str, Entry]) -> bytes:
    """Return RECORD of a wheel with these entries."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    own = record_name(entries)
    for name in sorted(entries, key=canonical_key):
        if name == own:
            writer.writerow([name, "", ""])
            continue
        content = entries[name].content
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
        writer.writerow([name, f"sha256={digest.rstrip(b'=').decode()}", len(content)])
    return text.getvalue().encode()


def pack_wheel(entries: Mapping[str, Entry], moment: int) -> bytes:
    """Return the canonical zip file of ``entries``, each dated ``moment``."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(entries, key=canonical_key):
            info = zipfile.ZipInfo(name, time.gmtime(moment)[:6])
            info.create_system = 3
            info.external_attr = (EXECUTABLE if entries[name].executable else REGULAR) << 16
            archive.writestr(info, entries[name].content)
    return target.getvalue()


def pack_sdist(entries: Mapping[str, Entry], moment: int) -> bytes:
    """Return the canonical ``.tar.gz`` of ``entries``, each dated ``moment``."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(entries):
            info = tarfile.TarInfo(name)
            info.size = len(entries[name].content)
            info.mtime = moment
            info.mode = (EXECUTABLE if entries[name].executable else REGULAR) & 0o777
            archive.addfile(info, io.BytesIO(entries[name].content))
    return _gzip(target.getvalue(), moment)


def _gzip(data: bytes, moment: int) -> bytes:
    """Wrap ``data`` in gzip's format (RFC 1952) by stored blocks."""
    pieces = [b"\x1f\x8b\x08\0", struct.pack("<I", moment), b"\0\xff"]
    for start in range(0, max(len(data), 1), MAX_STORED):
        block = data[start : start + MAX_STORED]
        last = start + MAX_STORED >= len(data)
        pieces += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    pieces.append(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFF_FFFF))
    return b"".join(pieces)


def rewrite_wheel(path: Path, *, sboms: Mapping[str, str] | None = None) -> None:
    """Rewrite the wheel at ``path``: RECORD made anew, everything in canonical form.

    Args:
        path: The wheel; it is replaced as a whole, or not at all.
        sboms: Documents to add under ``.dist-info/sboms/``, by file name.

    Raises:
        CanonicalError: It is no wheel, or holds what no wheel may hold.

    """
    entries = _entries(path)
    try:
        name = record_name(entries)
    except CanonicalError as error:
        msg = f"{printable(path.name)}: {error}"
        raise CanonicalError(msg) from error
    folder = name.removesuffix("/RECORD")
    for file, text in (sboms or {}).items():
        entries[f"{folder}/sboms/{file}"] = Entry(content=text.encode())
    entries[name] = Entry(content=record(entries))
    files.write_bytes(path, pack_wheel(entries, source_date_epoch()))


def rewrite_sdist(path: Path) -> None:
    """Rewrite the ``.tar.gz`` at ``path`` in canonical form; whole, or not at all.

    Raises:
        CanonicalError: It is no such archive, or holds links or unsafe names.

    """
    files.write_bytes(path, pack_sdist(_entries(path), source_date_epoch()))


def _entries(path: Path) -> dict[str, Entry]:
    try:
        return read(path).entries
    except UnreadableError as error:
        msg = f"It cannot be rewritten: {error}"
        raise CanonicalError(msg) from error
