"""Rewrite wheels and source distributions so that their bytes depend on contents alone.

Entries sorted, one time for all (SOURCE_DATE_EPOCH, else 1980, the first that a zip file can say),
modes 0644 or 0755, one compression, no owners, no extra fields, no folders.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from build_tools.audit.archive import ZIP_ERRORS, is_folder
from build_tools.audit.contents import is_native
from build_tools.audit.names import canonical_key
from build_tools.support.errors import BuildToolsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ZIP_EPOCH = 315_532_800  # 1980-01-01T00:00:00Z
LAST_ZIP_TIME = 4_354_819_198  # 2107-12-31T23:59:58Z
LEVEL = 9
REGULAR, EXECUTABLE = 0o100644, 0o100755


class CanonicalError(BuildToolsError):
    """The archive cannot be rewritten; it was left as it is."""


def source_date_epoch() -> int:
    """Return the time to write, in seconds since 1970.

    Raises:
        CanonicalError: SOURCE_DATE_EPOCH is no time that a zip file can hold.

    """
    text = os.environ.get("SOURCE_DATE_EPOCH", str(ZIP_EPOCH))
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:20]) <= LAST_ZIP_TIME:
        msg = f"SOURCE_DATE_EPOCH={text!r} is no number of seconds since 1970 before 2108; unset it"
        raise CanonicalError(msg)
    return max(int(text), ZIP_EPOCH)


def rewrite_wheel(path: Path, *, sboms: Mapping[str, str] | None = None) -> None:
    """Rewrite the wheel at ``path``: RECORD made anew, everything in canonical form.

    Args:
        path: The wheel.
        sboms: Documents to add under ``.dist-info/sboms/``, by file name.

    Raises:
        CanonicalError: It is no wheel of ours, or an entry is unsafe or twice there.

    """
    try:
        with zipfile.ZipFile(path) as source:
            names = [info.filename for info in source.infolist() if not is_folder(info)]
            if len(set(names)) != len(names):
                msg = f"{path.name} has two entries of one name"
                raise CanonicalError(msg)
            record = [name for name in names if name.endswith(".dist-info/RECORD")]
            if len(record) != 1:
                msg = f"{path.name} has {len(record)} RECORD files"
                raise CanonicalError(msg)
            contents = {name: source.read(name) for name in names}
    except ZIP_ERRORS as error:
        msg = f"{path} is not a wheel that can be rewritten: {error}"
        raise CanonicalError(msg) from error
    folder = record[0].removesuffix("/RECORD")
    contents |= {f"{folder}/sboms/{name}": text.encode() for name, text in (sboms or {}).items()}
    contents[record[0]] = _record(contents, record[0])
    moment = time.gmtime(source_date_epoch())[:6]
    with _replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name in sorted(contents, key=canonical_key):
            info = zipfile.ZipInfo(name, moment)
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = _mode(name, contents[name]) << 16
            target.writestr(info, contents[name], compresslevel=LEVEL)


def _mode(name: str, content: bytes) -> int:
    runnable = is_native(content[:64]) or ".data/scripts/" in name
    return EXECUTABLE if runnable else REGULAR


def _record(contents: dict[str, bytes], record: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for name in sorted(contents, key=canonical_key):
        if name == record:
            writer.writerow([name, "", ""])
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest())
        writer.writerow([name, f"sha256={digest.rstrip(b'=').decode()}", len(contents[name])])
    return text.getvalue().encode()


def rewrite_sdist(path: Path) -> None:
    """Rewrite the ``.tar.gz`` at ``path`` in canonical form.

    Raises:
        CanonicalError: It is no such archive, or holds links or unsafe names.

    """
    try:
        with tarfile.open(path, "r:gz") as source:
            members = sorted((each for each in source if not each.isdir()), key=lambda m: m.name)
            contents = [(each, _member(source, each, path.name)) for each in members]
    except (tarfile.TarError, OSError, EOFError) as error:
        msg = f"{path} is not a source distribution that can be rewritten: {error}"
        raise CanonicalError(msg) from error
    moment = source_date_epoch()
    with (
        _replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=LEVEL, mtime=moment) as z,
        tarfile.open(fileobj=z, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member, content in contents:
            info = tarfile.TarInfo(member.name)
            info.size = len(content)
            info.mtime = moment
            info.mode = 0o755 if member.mode & 0o100 else 0o644
            target.addfile(info, io.BytesIO(content))


def _member(source: tarfile.TarFile, member: tarfile.TarInfo, archive: str) -> bytes:
    parts = PurePosixPath(member.name).parts
    stream = source.extractfile(member) if member.isreg() else None
    if stream is None or member.name.startswith("/") or ".." in parts:
        msg = f"{archive}: {member.name} is a link, a special file, or climbs out"
        raise CanonicalError(msg)
    return stream.read()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the body succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
