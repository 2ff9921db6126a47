"""A window on bytes that were written by nobody we trust: every read is checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import mmap

Bytes: TypeAlias = "bytes | mmap.mmap"
LONGEST_STRING = 4096


class Malformed(Exception):  # noqa: N818 - a verdict on a file, not a failure of ours
    """The bytes are not what they claim to be; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """``size`` bytes of ``data`` from ``start``; offsets below are relative to ``start``."""

    data: Bytes
    start: int
    size: int
    order: Literal["<", ">"] = "<"

    def sub(
        self, offset: int, size: int, what: str, order: Literal["<", ">"] | None = None
    ) -> Window:
        """Return a smaller window; raise `Malformed` naming ``what`` when it does not fit."""
        self._check(offset, size, what)
        return Window(
            data=self.data, start=self.start + offset, size=size, order=order or self.order
        )

    def take(self, offset: int, size: int, what: str) -> bytes:
        """Return a copy of ``size`` bytes."""
        self._check(offset, size, what)
        at = self.start + offset
        return bytes(self.data[at : at + size])

    def unpack(self, fields: str, offset: int, what: str) -> tuple[int, ...]:
        """Read integers by a `struct` format without byte order."""
        fields = self.order + fields
        self._check(offset, struct.calcsize(fields), what)
        return struct.unpack_from(fields, self.data, self.start + offset)

    def text(self, offset: int, what: str, limit: int = LONGEST_STRING) -> str:
        """Read a NUL-terminated string of at most ``limit`` bytes."""
        return readable(self.terminated(offset, what, limit))

    def terminated(self, offset: int, what: str, limit: int = LONGEST_STRING) -> bytes:
        """Read bytes up to a NUL, which must come within ``limit`` bytes."""
        self._check(offset, 0, what)
        at = self.start + offset
        end = min(at + limit, self.start + self.size)
        stop = self.data.find(b"\0", at, end)
        if stop < 0:
            msg = f"{what} at offset {offset:#x} has no end within {end - at} bytes"
            raise Malformed(msg)
        return bytes(self.data[at:stop])

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


def whole(data: Bytes, order: Literal["<", ">"] = "<") -> Window:
    """Return the window on all of ``data``."""
    return Window(data=data, start=0, size=len(data), order=order)
