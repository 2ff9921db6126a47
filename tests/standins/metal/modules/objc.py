"""STAND-IN for PyObjC's ``objc``: autorelease pools that count, pointers to and from objects."""

from __future__ import annotations

from typing import Any

import Metal


class autorelease_pool:
    """Counts its depth for each thread, in the stand-in library."""

    def __enter__(self) -> None:
        Metal.library.standin_pool(1)

    def __exit__(self, *_: object) -> None:
        Metal.library.standin_pool(-1)


def pyobjc_id(proxy: Any) -> int:
    return int(proxy.pointer)


def objc_object(*, c_void_p: int) -> Metal.Buffer:
    if not Metal.library.standin_is_buffer(c_void_p):
        Metal.library.standin_misuse(b"an object was made of a pointer that is none")
    return Metal.Buffer(c_void_p)
