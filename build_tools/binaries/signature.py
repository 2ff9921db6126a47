"""Read and verify the code signature of a Mach-O slice, as far as it can be without Apple's roots.

Layouts after Apple's open source: cs_blobs.h in xnu, and codedirectory.h in Security. What is
checked: structure, the hash of every page, the hashes of the blobs inside. What is not: the chain
of certificates of an identified signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.binaries.reader import Malformed

if TYPE_CHECKING:
    from build_tools.binaries.macho import Slice
    from build_tools.binaries.reader import Window

SUPERBLOB, CODE_DIRECTORY, CMS = 0xFADE0CC0, 0xFADE0C02, 0xFADE0B01
SLOT_CODE_DIRECTORY, SLOT_REQUIREMENTS, SLOT_CMS = 0, 2, 0x10000
ALTERNATES = range(0x1000, 0x1005)
FLAG_ADHOC, FLAG_LINKER_SIGNED = 0x2, 0x20000
# hash type -> (name for hashlib, bytes kept)
HASHES = {1: ("sha1", 20), 2: ("sha256", 32), 3: ("sha256", 20), 4: ("sha384", 48)}
MOST_BLOBS = 64
PAGES_AT_MOST = 22  # no page is larger than 4 MiB


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One verified or refuted signature.

    ``kind`` is "ad hoc", "linker-signed" or "identified"; ``problems`` is empty when every hash
    agrees with the file.
    """

    kind: str
    identifier: str
    hashes: tuple[str, ...]
    problems: tuple[str, ...]


def verify(part: Slice) -> Signature | None:
    """Check the signature of ``part``; ``None`` when there is none.

    Raises:
        Malformed: The signature lies outside of the slice or contradicts itself.

    """
    if part.signature is None:
        return None
    offset, size = part.signature
    area = part.window.sub(offset, size, "the code signature", ">")
    blobs = _blobs(area)
    slots = [slot for slot in blobs if slot == SLOT_CODE_DIRECTORY or slot in ALTERNATES]
    if SLOT_CODE_DIRECTORY not in slots:
        msg = "the code signature has no code directory"
        raise Malformed(msg)
    problems: list[str] = []
    kinds, names, identifiers = [], [], []
    for slot in slots[: len(ALTERNATES) + 1]:
        directory = _Directory(blobs[slot])
        kinds.append(directory.flags)
        names.append(directory.hash_name)
        identifiers.append(directory.identifier)
        problems += directory.check_pages(part, offset)
        problems += directory.check_blobs(blobs)
    cms = blobs.get(SLOT_CMS)
    identified = cms is not None and cms.size > 8
    if not identified and not kinds[0] & FLAG_ADHOC:
        problems.append("neither marked as ad hoc nor signed by anyone")
    kind = "linker-signed" if kinds[0] & FLAG_LINKER_SIGNED else "ad hoc"
    return Signature(
        kind="identified" if identified else kind,
        identifier=identifiers[0],
        hashes=tuple(names),
        problems=tuple(problems),
    )


def _blobs(area: Window) -> dict[int, Window]:
    magic, length, count = area.unpack("III", 0, "the signature's header")
    if magic != SUPERBLOB:
        msg = f"the code signature starts with {magic:#x} instead of {SUPERBLOB:#x}"
        raise Malformed(msg)
    if count > MOST_BLOBS:
        msg = f"the code signature states {count} blobs"
        raise Malformed(msg)
    area = area.sub(0, length, "the code signature")
    blobs: dict[int, Window] = {}
    for index in range(count):
        slot, offset = area.unpack("II", 12 + index * 8, "the signature's index")
        _, size = area.unpack("II", offset, "a blob of the signature")
        if slot in blobs:
            msg = f"the code signature has two blobs for slot {slot:#x}"
            raise Malformed(msg)
        blobs[slot] = area.sub(offset, size, "a blob of the signature")
    return blobs


class _Directory:
    """One code directory: a hash for every page of the file and for each special blob."""

    def __init__(self, blob: Window) -> None:
        what = "the code directory"
        fields = blob.unpack("9I4B", 0, what)
        (
            magic,
            _,
            version,
            self.flags,
            self.hashes_at,
            name_at,
            self.special,
            self.pages,
            limit,
        ) = fields[:9]
        if magic != CODE_DIRECTORY:
            msg = f"{what} starts with {magic:#x} instead of {CODE_DIRECTORY:#x}"
            raise Malformed(msg)
        size, kind, _, shift = fields[9:]
        if kind not in HASHES or HASHES[kind][1] != size:
            msg = f"{what} uses hash type {kind} of {size} bytes, which does not exist"
            raise Malformed(msg)
        self.hash_name, self.hash_size = HASHES[kind]
        self.page_shift = shift
        self.limit = limit
        if version >= 0x20300:
            (wide,) = blob.unpack("Q", 56, what)
            self.limit = wide or limit
        self.identifier = blob.text(name_at, "the signature's identifier")
        self.blob = blob

    def check_pages(self, part: Slice, signature: int) -> list[str]:
        """Hash every page; return what is wrong."""
        shift = self.page_shift
        if shift > PAGES_AT_MOST:
            return [f"pages of 2^{shift} bytes do not exist"]
        # A page size of zero means one page: everything.
        page = 1 << shift if shift else max(self.limit, 1)
        expected = -(-self.limit // page)
        if self.pages != expected:
            return [f"{self.pages} page hashes where {expected} are needed"]
        if self.limit > part.window.size:
            return [f"covers {self.limit} bytes of a file of {part.window.size}"]
        if self.limit < signature:
            return [f"covers {self.limit} bytes, but the file has {signature} before its signature"]
        wrong = [
            index
            for index in range(self.pages)
            if self._hash(part.window, index * page, min(page, self.limit - index * page))
            != self._stored(index)
        ]
        if not wrong:
            return []
        return [f"{len(wrong)} of {self.pages} page hashes are wrong, the first of page {wrong[0]}"]

    def check_blobs(self, blobs: dict[int, Window]) -> list[str]:
        """Hash the special blobs (requirements, entitlements, ...) that the file carries."""
        problems = []
        for slot, blob in blobs.items():
            if not 0 < slot < 16:
                continue
            if slot > self.special:
                problems.append(f"the blob of slot {slot} has no hash")
            elif self._hash(blob, 0, blob.size) != self._stored(-slot):
                problems.append(f"the hash of the blob of slot {slot} is wrong")
        return problems

    def _stored(self, index: int) -> bytes:
        return self.blob.take(
            self.hashes_at + index * self.hash_size, self.hash_size, "a hash of the code directory"
        )

    def _hash(self, window: Window, offset: int, size: int) -> bytes:
        digest = hashlib.new(self.hash_name, usedforsecurity=False)
        digest.update(window.take(offset, size, "a page"))
        return digest.digest()[: self.hash_size]
