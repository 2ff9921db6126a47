"""Calls compiled Metal sources from Python, as the Swift stand-in of Metal does: for unit tests."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.standins.software_metal.compile import compile_source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

SLOTS = 31
_NONE, _DEVICE, _CONSTANT = 0, 1, 2


class _Triple(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("uninitialised", ctypes.c_uint32),
    )


class _Dispatch(ctypes.Structure):
    _fields_ = (
        ("buffers", _Buffer * SLOTS),
        ("threadgroup_bytes", ctypes.c_uint64 * SLOTS),
        ("threads", _Triple),
        ("group", _Triple),
    )


class _Constant(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_int),
        ("value", ctypes.c_void_p),
        ("defined", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("required", ctypes.c_bool),
    )


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What is bound to one index.

    Attributes:
        array: Memory of a device buffer, changed in place.
        skip: Elements of it that lie before what the kernel gets.
        uninitialised: Whether the checker reports reads of what no lane wrote.

    """

    array: NDArray[np.generic]
    skip: int = 0
    uninitialised: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the memory checker found at one instruction.

    Attributes:
        text: In words: what, and of which buffer.
        offset: Of the instruction in the library.
        count: How often.

    """

    text: str
    offset: int
    count: int


@dataclass(kw_only=True)
class Program:
    """One compiled source."""

    path: Path
    library: ctypes.CDLL = field(init=False)

    def __post_init__(self) -> None:
        self.library = ctypes.CDLL(str(self.path))

    def set_constants(self, values: Mapping[int, bytes]) -> None:
        """Give the function constants their values, by index; others are undefined."""
        table = ctypes.cast(self.library.software_metal_constants, ctypes.POINTER(_Constant))
        place = 0
        while table[place].index >= 0:
            constant = table[place]
            value = values.get(constant.index, b"")
            ctypes.memset(constant.value, 0, constant.size)
            ctypes.memmove(constant.value, value, len(value))
            ctypes.memset(constant.defined, bool(value), 1)
            place += 1

    def dispatch(
        self,
        name: str,
        bindings: Mapping[int, Bound | bytes],
        *,
        threads: tuple[int, int, int],
        group: tuple[int, int, int],
        threadgroup_bytes: Mapping[int, int] | None = None,
    ) -> None:
        """Run kernel ``name`` over a grid of ``threads``, in threadgroups of ``group``."""
        request = _Dispatch(threads=_Triple(*threads), group=_Triple(*group))
        kept = []
        for index, bound in bindings.items():
            if isinstance(bound, bytes):
                copy = ctypes.create_string_buffer(bound, len(bound))
                kept.append(copy)
                request.buffers[index] = _Buffer(
                    ctypes.addressof(copy), 0, len(bound), _CONSTANT, 0
                )
            else:
                offset = bound.skip * bound.array.itemsize
                request.buffers[index] = _Buffer(
                    bound.array.ctypes.data + offset,
                    offset,
                    bound.array.nbytes,
                    _DEVICE,
                    bound.uninitialised,
                )
        for index, size in (threadgroup_bytes or {}).items():
            request.threadgroup_bytes[index] = size
        status = self.library.software_metal_dispatch(name.encode(), ctypes.byref(request))
        if status != 0:
            msg = f"software Metal: {name} cannot be dispatched ({status})"
            raise ValueError(msg)


def load(source: str, *, check: bool = False, cache: Path | None = None) -> Program:
    """Compile ``source`` and open it."""
    return Program(path=compile_source(source, check=check, cache=cache))


def read_findings(path: Path) -> list[Finding]:
    """Read what the checker wrote to ``path`` (``SOFTWARE_METAL_FINDINGS``)."""
    if not path.is_file():
        return []
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [Finding(text=row[0], offset=int(row[1], 16), count=int(row[2])) for row in rows]


def schedules(count: int) -> list[str]:
    """Return ``count`` different schedules."""
    return ["forward", "reversed", *(f"shuffled:{seed}" for seed in range(1, count - 1))]


def use(schedule: str) -> None:
    """Choose the schedule of the next dispatches of this process."""
    os.environ["SOFTWARE_METAL_SCHEDULE"] = schedule
