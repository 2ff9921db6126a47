"""Bytes that were written by nobody we trust: every read is checked, and there is an end to them.

Counts and sizes that a file states are never believed, and chains that loop are cut.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

MAX_STRING = 4096
MAX_BUDGET = 64 * 1024 * 1024  # bytes, of which each read takes 64 beside its own
COST_OF_A_READ = 64


class Malformed(Exception):  # noqa: N818 - a result about a file, not a failure of ours
    """The bytes are not what they claim to be; the message says where."""


class BoundedStream(io.BytesIO):
    """A file in memory that may be read so often and no more, for parsers that believe it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._budget = MAX_BUDGET + 8 * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; raise `Malformed` when reading goes on for longer than any sound file needs."""
        data = super().read(size)
        self._budget -= COST_OF_A_READ + len(data)
        if self._budget < 0:
            msg = "reading it does not end: its tables loop or are too large"
            raise Malformed(msg)
        return data


@dataclass(frozen=True, kw_only=True)
class BoundedReader:
    """``size`` bytes of ``data`` from ``start``; offsets below are relative to ``start``."""

    data: bytes
    start: int
    size: int

    def sub(self, offset: int, size: int, what: str) -> BoundedReader:
        """Return a reader of a part; raise `Malformed` naming ``what`` when it does not fit."""
        self._check(offset, size, what)
        return BoundedReader(data=self.data, start=self.start + offset, size=size)

    def take(self, offset: int, size: int, what: str) -> bytes:
        """Return a copy of ``size`` bytes."""
        self._check(offset, size, what)
        at = self.start + offset
        return self.data[at : at + size]

    def unpack(self, fields: str, offset: int, what: str) -> tuple[int, ...]:
        """Read little-endian integers by a `struct` format without byte order."""
        fields = f"<{fields}"
        self._check(offset, struct.calcsize(fields), what)
        return struct.unpack_from(fields, self.data, self.start + offset)

    def terminated(self, offset: int, what: str, limit: int = MAX_STRING) -> bytes:
        """Read bytes up to a NUL, which must come within ``limit`` bytes."""
        self._check(offset, 0, what)
        at = self.start + offset
        end = min(at + limit, self.start + self.size)
        stop = self.data.find(b"\0", at, end)
        if stop < 0:
            msg = f"{what} at offset {offset:#x} has no end within {end - at} bytes"
            raise Malformed(msg)
        return self.data[at:stop]

    def _check(self, offset: int, size: int, what: str) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            msg = (
                f"{what} at offset {offset:#x} of {size} bytes"
                f" lies outside of the {self.size} bytes there are"
            )
            raise Malformed(msg)


def readable(raw: bytes) -> str:
    """Return ``raw`` as text, whatever it holds."""
    return raw.decode("utf-8", "backslashreplace")
