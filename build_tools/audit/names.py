"""Names of the entries: safe to unpack anywhere, and once each."""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
from typing import TYPE_CHECKING

from build_tools.audit.archive import is_folder, is_special
from build_tools.audit.findings import Finding, found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from build_tools.audit.archive import Archive

# Names that Windows keeps for devices, with any extension (Microsoft: "Naming Files, Paths").
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[1-9¹²³]|lpt[1-9¹²³])(\..*)?")
RESERVED = re.compile(r'[<>:"|?*]|[ .]$')
UNSAFE = re.compile(r"[\\\x00-\x1f\x7f]|^/|^[A-Za-z]:|(^|/)\.\.?(/|$)|//")


def check_names(archive: Archive) -> Iterator[Finding]:
    """Check every entry's name and kind."""
    seen: dict[str, str] = {}
    exact: set[str] = set()
    for info in archive.entries:
        name = info.orig_filename
        if not info.filename or UNSAFE.search(name):
            yield found("name-unsafe", name, "absolute, climbing, or with forbidden characters")
        yield from _portable(name)
        if is_special(info):
            kind = stat.S_IFMT(info.external_attr >> 16)
            what = "a symbolic link" if kind == stat.S_IFLNK else f"file type {kind:#o}"
            yield found("entry-special", name, what)
        folded = unicodedata.normalize("NFC", name.rstrip("/")).casefold()
        if name in exact:
            yield found("name-duplicate", name, "this name occurs more than once")
        elif folded in seen:
            yield found("name-collision", name, f"differs from {seen[folded]} by case or form only")
        seen.setdefault(folded, name)
        exact.add(name)


def _portable(name: str) -> Iterator[Finding]:
    for part in name.rstrip("/").split("/"):
        if DEVICES.fullmatch(part) or (RESERVED.search(part) and part not in {".", ".."}):
            yield found("name-not-portable", name, f"{part!r} is no file name on Windows")
            return


def check_canonical(archive: Archive) -> Iterator[Finding]:
    """Check that the zip file depends on nothing but names and contents."""
    problems = list(_not_canonical(archive))
    if problems:
        yield found("not-canonical", archive.path.name, "; ".join(problems))


def _not_canonical(archive: Archive) -> Iterator[str]:
    names = [info.filename for info in archive.entries]
    if names != sorted(names, key=canonical_key):
        yield "entries are not sorted, with .dist-info last"
    times = {info.date_time for info in archive.entries}
    if len(times) > 1:
        yield f"entries have {len(times)} different times"
    modes = {oct(info.external_attr >> 16) for info in archive.entries}
    strange = sorted(modes - {"0o100644", "0o100755"})
    if strange:
        yield f"entries have the modes {', '.join(strange)}"
    if any(info.create_system != 3 for info in archive.entries):
        yield "entries were not made as on Unix"
    if any(info.extra or info.comment for info in archive.entries) or archive.zip.comment:
        yield "entries have extra fields or comments"
    if any(is_folder(info) for info in archive.entries):
        yield "folders have entries of their own"
    methods = {info.compress_type for info in archive.entries if info.file_size}
    if methods - {zipfile.ZIP_DEFLATED}:
        yield "some entries are not compressed by deflate"


def canonical_key(name: str) -> tuple[bool, bool, str]:
    """Sort key of entries: the package first, then .dist-info, RECORD last, as PEP 427 advises."""
    top = name.split("/", 1)[0]
    metadata = top.endswith(".dist-info")
    return metadata, metadata and name.endswith("/RECORD"), name
