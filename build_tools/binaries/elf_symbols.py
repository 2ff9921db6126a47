"""The dynamic symbols of an ELF file and the versions that it demands of other libraries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.binaries.exports import LONGEST_NAME, MOST_NAME_BYTES
from build_tools.binaries.reader import Malformed, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from build_tools.binaries.reader import Window

    Locate = Callable[[int, str], Window]

DT_HASH, DT_SYMTAB, DT_SYMENT = 4, 6, 11
DT_GNU_HASH, DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFEF5, 0x6FFFFFFE, 0x6FFFFFFF
STB_LOCAL, STV_DEFAULT, STV_PROTECTED = 0, 0, 3
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
MOST_SYMBOLS = 1_000_000
MOST_VERSIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class Symbols:
    """Exported and imported names; ``versions`` as (library, version)."""

    exports: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    versions: frozenset[tuple[str, str]] = frozenset()


def read_symbols(
    locate: Locate, values: Mapping[int, int], strings: Window | None, bits: int
) -> Symbols:
    """Read the symbols that a dynamic section points to.

    Args:
        locate: Gives the window at an address.
        values: Tag to value of the dynamic section.
        strings: Its string table.
        bits: 32 or 64.

    Raises:
        Malformed: A table lies outside of the file, or loops.

    """
    if strings is None:
        return Symbols()
    versions = _versions(locate, values, strings)
    if DT_SYMTAB not in values:
        return Symbols(versions=versions)
    table = locate(values[DT_SYMTAB], "the symbol table")
    count = _count(locate, values, bits)
    entry = 24 if bits == 64 else 16
    exports, imports = set(), set()
    total = 0
    # Entry 0 is the null symbol.
    for index in range(1, min(count, table.size // entry)):
        if bits == 64:
            name, info, other, section = table.unpack("IBBH", index * entry, "a symbol")
        else:
            name, _, _, info, other, section = table.unpack("IIIBBH", index * entry, "a symbol")
        if info >> 4 == STB_LOCAL or not name:
            continue
        raw = strings.terminated(name, "a symbol's name", LONGEST_NAME)
        total += len(raw)
        if total > MOST_NAME_BYTES:
            msg = "the symbol table spells more text than any library has"
            raise Malformed(msg)
        if section == SHN_UNDEF:
            imports.add(readable(raw))
        elif section != SHN_ABS and other & 3 in {STV_DEFAULT, STV_PROTECTED}:
            # Absolute symbols are version names, not functions or data.
            exports.add(readable(raw))
    return Symbols(exports=frozenset(exports), imports=frozenset(imports), versions=versions)


def _count(locate: Locate, values: Mapping[int, int], bits: int) -> int:
    """Return how many symbols there are; the dynamic section only tells through a hash table."""
    if DT_HASH in values:
        (count,) = locate(values[DT_HASH], "the hash table").unpack("I", 4, "the hash table")
    elif DT_GNU_HASH in values:
        count = _gnu_count(locate(values[DT_GNU_HASH], "the GNU hash table"), bits)
    else:
        count = 0
    if count > MOST_SYMBOLS:
        msg = f"the hash table states {count} symbols"
        raise Malformed(msg)
    return count


def _gnu_count(table: Window, bits: int) -> int:
    what = "the GNU hash table"
    buckets, first, bloom, _ = table.unpack("4I", 0, what)
    start = 16 + bloom * (bits // 8)
    if buckets > MOST_SYMBOLS:
        msg = f"{what} states {buckets} buckets"
        raise Malformed(msg)
    highest = max(table.unpack(f"{buckets}I", start, what), default=0)
    if highest < first:
        return first
    chains = start + buckets * 4
    # The last chain ends at the first value whose lowest bit is set; the window ends it at worst.
    while not table.unpack("I", chains + (highest - first) * 4, what)[0] & 1:
        highest += 1
    return highest + 1


def _versions(
    locate: Locate, values: Mapping[int, int], strings: Window
) -> frozenset[tuple[str, str]]:
    if DT_VERNEED not in values:
        return frozenset()
    area = locate(values[DT_VERNEED], "the version table")
    found: set[tuple[str, str]] = set()
    offset, steps = 0, 0
    for _ in range(min(values.get(DT_VERNEEDNUM, 0), MOST_VERSIONS)):
        _, count, file, first, following = area.unpack("HHIII", offset, "a version need")
        library = strings.text(file, "a library's name")
        at = offset + first
        for _ in range(count):
            steps += 1
            if steps > MOST_VERSIONS:
                msg = "the version table loops"
                raise Malformed(msg)
            *_, name, skip = area.unpack("IHHII", at, "a version")
            found.add((library, strings.text(name, "a version's name")))
            if not skip:
                break
            at += skip
        if not following:
            break
        offset += following
    return frozenset(found)
