"""Two wheels side by side: identical, or an account of what differs, down to line and section."""

from __future__ import annotations

import difflib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from build_tools.binaries import elf, macho
from build_tools.binaries.reader import Malformed
from build_tools.support.console import printable
from build_tools.support.errors import BuildToolsError
from build_tools.wheel.archives import ARCHIVE_ERRORS

MAX_LINES = 20
MAX_TEXT = 1024 * 1024


class CompareError(BuildToolsError):
    """One of the files is no wheel that can be compared."""


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two wheels, one line each; empty when the bytes are the same.

    Raises:
        CompareError: One of them cannot be read.

    """
    try:
        if first.read_bytes() == second.read_bytes():
            return []
        with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
            found = list(_wheels(one, other))
    except ARCHIVE_ERRORS as error:
        msg = f"{first.name} and {second.name} cannot be compared: {error}"
        raise CompareError(msg) from error
    if first.name != second.name:
        found.insert(0, f"file name: {first.name} | {second.name}")
    return [*map(printable, found)] or ["the files are the same, the zip streams differ"]


def _wheels(one: zipfile.ZipFile, other: zipfile.ZipFile) -> Iterator[str]:
    here = {info.filename: info for info in one.infolist()}
    there = {info.filename: info for info in other.infolist()}
    for name in sorted(here.keys() - there.keys()):
        yield f"{name}: only in the first"
    for name in sorted(there.keys() - here.keys()):
        yield f"{name}: only in the second"
    if list(here) != list(there) and here.keys() == there.keys():
        yield "the entries come in another order"
    for name in sorted(here.keys() & there.keys()):
        yield from _entries(here[name], there[name])
        first, second = one.read(name), other.read(name)
        if first != second:
            yield from _files(name, first, second)


def _entries(one: zipfile.ZipInfo, other: zipfile.ZipInfo) -> Iterator[str]:
    for field in ("date_time", "external_attr", "create_system", "compress_type", "extra"):
        first, second = getattr(one, field), getattr(other, field)
        if first != second:
            if field == "external_attr":
                first, second = oct(first >> 16), oct(second >> 16)
            yield f"{one.filename}: zip field {field}: {first} | {second}"


def _files(name: str, first: bytes, second: bytes) -> Iterator[str]:
    try:
        one, other = _parts(first), _parts(second)
    except (ELFError, Malformed, ValueError, KeyError) as error:
        yield f"{name}: {_bytes(first, second)} (it cannot be read: {error})"
        return
    if not one or not other:
        yield from _texts(name, first, second)
        return
    for part in sorted(one.keys() | other.keys()):
        place = f"{name}: {part}"
        if part not in one or part not in other:
            yield f"{place}: only in the {'first' if part in one else 'second'}"
        elif one[part] != other[part]:
            yield f"{place}: {_bytes(one[part], other[part])}"
            yield from _strings(place, one[part], other[part])
    if one == other:
        yield f"{name}: the parts are the same, their headers or places differ"


def _parts(data: bytes) -> dict[str, bytes]:
    """Return the sections of an ELF file, the segments of a Mach-O file, nothing of others."""
    if elf.is_elf(data):
        return {
            f"section {section.name or '(none)'}": section.data()
            for section in ELFFile(io.BytesIO(data)).iter_sections()
            if section["sh_type"] not in {"SHT_NULL", "SHT_NOBITS"}
        }
    if macho.is_macho(data):
        return {
            f"segment {each.name}": data[each.file_offset : each.file_offset + each.file_size]
            for each in macho.read(data).segments
        }
    return {}


def _texts(name: str, first: bytes, second: bytes) -> Iterator[str]:
    try:
        one, other = (side.decode("utf-8").splitlines() for side in (first, second))
    except UnicodeError:
        one, other = [], []
    if not one or not other or max(len(first), len(second)) > MAX_TEXT:
        yield f"{name}: {_bytes(first, second)}"
        return
    lines = difflib.unified_diff(one, other, n=0, lineterm="")
    for number, line in enumerate(line for line in lines if not line.startswith(("---", "+++"))):
        if number == MAX_LINES:
            yield f"{name}: and more"
            return
        yield f"{name}: {line}"


def _bytes(first: bytes, second: bytes) -> str:
    if len(first) != len(second):
        return f"{len(first)} bytes | {len(second)} bytes"
    places = [
        index for index, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]
    ]
    return f"{len(places)} of {len(first)} bytes differ, the first at {places[0]:#x}"


def _strings(place: str, first: bytes, second: bytes) -> Iterator[str]:
    """Show the printable strings that only one side has: paths, times, names."""
    one, other = _printable(first), _printable(second)
    shown = sorted(one ^ other)[:5]
    for text in shown:
        yield f"{place}: only in the {'first' if text in one else 'second'}: {text!r}"


def _printable(data: bytes) -> set[str]:
    words = "".join(chr(byte) if 32 <= byte < 127 else "\n" for byte in data[: 4 * MAX_TEXT])
    return {word for word in words.split("\n") if len(word) >= 8}
