"""Read every file of a wheel once: its hash, its kind, and the facts of native files."""

from __future__ import annotations

import base64
import hashlib
import mmap
import re
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from build_tools.audit.archive import ZIP_ERRORS
from build_tools.audit.findings import Finding, found
from build_tools.binaries import elf, macho, pe, signature
from build_tools.binaries.reader import Malformed

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator

    from build_tools.audit.archive import Archive
    from build_tools.binaries.reader import Bytes

LARGEST_TEXT = 16 * 1024 * 1024
HASHES = ("sha256", "sha384", "sha512")
RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
# A path of somebody's machine: a folder of one user, of a toolchain or of a CI workspace. What a
# program may rightly name on any machine (/tmp, /usr, /Users/Shared) is left out. Each pattern
# starts with one letter, which `re` finds fast; what stands before is looked at afterwards.
REST = rb"""[^\x00-\x1f\x7f"'<>|]{0,160}"""
UNIX_PATH = re.compile(
    rb"""/(?<![\w.~/\\-]/)(?:
      (?:Users|home)/(?!Shared\b)[\w.-]+/
    | root/[\w.-]
    | (?:private/)?var/folders/\w
    | (?:private/)?tmp/(?:pip-|build|tmp\w{8})
    | (?:private/)?var/run/com\.apple\.security\.cryptexd/
    | Applications/Xcode
    | Library/Developer/
    | github/workspace | __w/ | builds/[\w-]+/
    | opt/homebrew/Cellar/ | usr/local/Cellar/
    )"""
    + REST,
    re.VERBOSE,
)
WINDOWS_PATH = re.compile(
    rb"""(?<=[A-Za-z]):(?<![\w.\\/]\w:)[\\/]{1,2}(?:Users[\\/]{1,2}[\w.-]+|a[\\/]{1,2}[\w.-]+)[\\/]"""
    + REST,
)
MOST_PATHS = 10_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """One architecture of a Mach-O file with its signature."""

    facts: macho.Slice
    signed: signature.Signature | None
    signature_problem: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one file of the wheel holds."""

    name: str
    size: int
    digests: dict[str, str]  # hash name -> urlsafe base64 without padding, as in RECORD
    text: bytes | None = None  # of files in .dist-info, and of others on request
    elf: elf.Elf | None = None
    macho: tuple[Part, ...] = ()
    pe: pe.Pe | None = None
    build_paths: tuple[str, ...] = ()
    build_path_count: int = 0

    @property
    def native(self) -> bool:
        """Whether the file is code for a machine, other than a Windows launcher."""
        return bool(self.elf or self.macho or (self.pe and self.pe.library))

    def hexadecimal(self, algorithm: str) -> str:
        """Return a digest in hexadecimal digits."""
        return base64.urlsafe_b64decode(self.digests[algorithm] + "==").hex()


def read_contents(
    archive: Archive, keep: frozenset[str] = frozenset()
) -> tuple[dict[str, Content], list[Finding]]:
    """Unpack and look at every file; files that cannot be read become findings.

    Args:
        archive: The open wheel.
        keep: Names of files outside of .dist-info whose text is wanted too.

    """
    contents: dict[str, Content] = {}
    findings: list[Finding] = []
    if not archive.readable:
        return contents, findings
    algorithms = _algorithms(archive)
    for info in archive.files:
        try:
            content, problems = _read(archive, info, algorithms, text=info.filename in keep)
        except ZIP_ERRORS as error:
            if not info.flag_bits & 1:
                findings.append(found("zip-corrupt", info.filename, f"cannot be unpacked: {error}"))
            continue
        findings += problems
        contents[info.filename] = content
    return contents, findings


def _algorithms(archive: Archive) -> list[str]:
    """Return the hash algorithms that are worth computing: SHA-256, and what RECORD uses."""
    for info in archive.files:
        if RECORD.fullmatch(info.filename) and info.file_size <= LARGEST_TEXT:
            try:
                text = b"".join(archive.chunks(info))
            except ZIP_ERRORS:
                continue
            return [each for each in HASHES if each == "sha256" or f",{each}=".encode() in text]
    return ["sha256"]


def _read(
    archive: Archive, info: zipfile.ZipInfo, algorithms: list[str], *, text: bool
) -> tuple[Content, list[Finding]]:
    name = info.filename
    hashers = [hashlib.new(each, usedforsecurity=False) for each in algorithms]
    text = (text or ".dist-info/" in name) and info.file_size <= LARGEST_TEXT
    with tempfile.TemporaryFile() as spool:
        size, head, native = 0, b"", False
        for piece in archive.chunks(info):
            if not size:
                head = piece[:64]
                native = is_native(head)
            size += len(piece)
            for hasher in hashers:
                hasher.update(piece)
            if native or text:
                spool.write(piece)
        digests = {
            each: base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
            for each, hasher in zip(algorithms, hashers, strict=True)
        }
        content = Content(name=name, size=size, digests=digests)
        if not size or not (native or text):
            return content, []
        spool.flush()
        spool.seek(0)
        if not native:
            return _with_paths(content, spool.read()), []
        with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _native(content, head, data)


def is_native(head: bytes) -> bool:
    """Say whether a file that starts with ``head`` may be code for a machine."""
    return elf.is_elf(head) or macho.is_macho(head) or pe.is_pe(head)


def _with_paths(content: Content, data: bytes) -> Content:
    # The description after METADATA's fields is prose, in which paths are examples.
    prose = content.name.endswith("/METADATA")
    paths, count = build_paths(data.replace(b"\r\n", b"\n").split(b"\n\n", 1)[0] if prose else data)
    return Content(
        name=content.name,
        size=content.size,
        digests=content.digests,
        text=data,
        build_paths=paths,
        build_path_count=count,
    )


def _native(content: Content, head: bytes, data: mmap.mmap) -> tuple[Content, list[Finding]]:
    findings = []
    facts: dict[str, object] = {}
    try:
        if elf.is_elf(head):
            facts["elf"] = elf.read(data)
        elif macho.is_macho(head):
            facts["macho"] = tuple(_part(each) for each in macho.read(data))
        else:
            facts["pe"] = pe.read(data)
    except Malformed as error:
        findings.append(found("binary-malformed", content.name, str(error)))
    paths, count = build_paths(data)
    return (
        Content(
            name=content.name,
            size=content.size,
            digests=content.digests,
            elf=cast("elf.Elf | None", facts.get("elf")),
            macho=cast("tuple[Part, ...]", facts.get("macho", ())),
            pe=cast("pe.Pe | None", facts.get("pe")),
            build_paths=paths,
            build_path_count=count,
        ),
        findings,
    )


def _part(part: macho.Slice) -> Part:
    try:
        return Part(facts=part, signed=signature.verify(part), signature_problem="")
    except Malformed as error:
        return Part(facts=part, signed=None, signature_problem=str(error))


def build_paths(data: Bytes) -> tuple[tuple[str, ...], int]:
    """Return up to three different build-machine paths in ``data``, and how many there are."""
    examples: dict[str, None] = {}
    count = 0
    for match in _matches(data):
        count += 1
        if len(examples) < 3:
            examples.setdefault(match.decode("utf-8", "backslashreplace"))
    return tuple(examples), count


def _matches(data: Bytes) -> Iterator[bytes]:
    for pattern, drive in ((UNIX_PATH, 0), (WINDOWS_PATH, 1)):
        for number, match in enumerate(pattern.finditer(data)):
            if number >= MOST_PATHS:
                break
            yield bytes(data[match.start() - drive : match.end()])
