"""Where the Metal library's shaders came from, and what to do when none could be had."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen_mfa.native import library

PLACES = {
    "pack": "the wheel's shader pack",
    "cache": "your cache of compiled shaders",
    "runtime": "macOS's own compiler",
    "xcrun": "Xcode's compiler",
    "failed": "nowhere",
}
_SYMBOL = "mfa_shader_origins"
# Of our build of the Metal library alone. It returns the number of bytes that it needs, and writes
# nothing where `size` is less.
_DECLARATION = "int32_t mfa_shader_origins(char *buffer, long size);"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """One shader library of this process.

    Attributes:
        key: SHA-256 over compile options and source.
        variant: ``"upstream"``, or ``"plain"``: our replacement of its private intrinsics.
        place: A key of `PLACES`.
        milliseconds: What it took to get it.
        attempts: What was tried before, and why it did not do.
        options: What it was compiled with; empty where the library does not say.

    """

    key: str
    variant: str
    place: str
    milliseconds: float
    attempts: tuple[str, ...]
    options: str = ""

    def __str__(self) -> str:
        where = PLACES.get(self.place, self.place)
        return f"{self.key[:12]} ({self.variant}): {where}, {self.milliseconds:.0f} ms"


def origins() -> list[Origin]:
    """Return the origin of every shader library that this process has asked for, in order.

    Empty before the first call, and for a library that keeps no record.

    Raises:
        LibraryError: The library cannot be used.

    """
    c, lib = _opened(str(library.load().path))
    if not hasattr(lib, _SYMBOL):
        return []
    size = lib.mfa_shader_origins(c.NULL, 0) + 4096  # another thread may add one meanwhile
    text = c.new("char[]", size)
    lib.mfa_shader_origins(text, size)
    return [
        Origin(
            key=str(entry["key"]),
            variant=str(entry["variant"]),
            place=str(entry["origin"]),
            milliseconds=float(entry["milliseconds"]),
            attempts=tuple(map(str, entry["attempts"])),
            options=str(entry.get("options", "")),
        )
        for entry in json.loads(bytes(c.string(text)) or b"[]")
    ]


@cache
def _opened(path: str) -> tuple[Any, Any]:
    from cffi import FFI  # noqa: PLC0415 - only where a library is used

    c = FFI()
    c.cdef(_DECLARATION)
    return c, c.dlopen(path)  # open already: the same library


def advice(found: list[Origin]) -> str | None:
    """Return what to do about shaders that could not be had, or ``None`` when all is well."""
    failed = [origin for origin in found if origin.place == "failed"]
    if not failed:
        return None
    tried = "; ".join(failed[-1].attempts) or "nothing was tried"
    return (
        f"{len(failed)} shader(s) could not be compiled here, so MLX runs instead. Install a wheel "
        "with a shader pack for this macOS, or Xcode with its Metal toolchain (xcodebuild "
        f"-downloadComponent MetalToolchain), and start again. Tried: {tried}"
    )
