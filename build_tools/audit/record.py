"""RECORD: complete, true, and by strong hashes."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from build_tools.audit.contents import HASHES
from build_tools.audit.findings import Finding, found

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from build_tools.audit.archive import Archive
    from build_tools.audit.contents import Content

UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")


def check_record(
    archive: Archive, contents: Mapping[str, Content], folder: str
) -> Iterator[Finding]:
    """Check every line of RECORD, and that every file has one."""
    name = f"{folder}/RECORD"
    content = contents.get(name)
    if content is None or content.text is None:
        yield found("record-missing", name, "there is no such file, or it cannot be read")
        return
    try:
        rows = list(csv.reader(io.StringIO(content.text.decode("utf-8"), newline="")))
    except (csv.Error, UnicodeDecodeError) as error:
        yield found("record-invalid", name, str(error))
        return
    listed: set[str] = set()
    files = {info.filename for info in archive.files}
    exempt = {f"{folder}/{each}" for each in UNLISTED}
    for number, row in enumerate(filter(None, rows), 1):
        if len(row) != 3:
            yield found("record-invalid", name, f"line {number} has {len(row)} fields, not 3")
            continue
        if row[0] in listed:
            yield found("record-invalid", name, f"{row[0]} is listed twice")
        listed.add(row[0])
        if row[0] not in files:
            yield found("record-absent", row[0], "listed in RECORD")
        elif row[0] not in exempt and row[0] in contents:
            # RECORD has no hash of itself; what cannot be unpacked has its own finding.
            yield from _row(row, contents[row[0]])
    for name in sorted(files - listed - exempt):
        yield found("record-unlisted", name, "not in RECORD")


def _row(row: list[str], content: Content) -> Iterator[Finding]:
    name, stated, size = row
    algorithm, _, digest = stated.partition("=")
    if algorithm not in HASHES:
        yield found("record-weak", name, f"RECORD gives {algorithm or 'no hash'}")
    elif content.digests.get(algorithm) != digest.rstrip("="):
        yield found("record-hash", name, f"its {algorithm} is not the one in RECORD")
    if size and size != str(content.size):
        yield found("record-hash", name, f"RECORD says {size} bytes, the file has {content.size}")
