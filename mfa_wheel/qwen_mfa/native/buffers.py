"""Borrowing the memory of MLX arrays on the CPU, without copies, and making fresh outputs.

MLX's buffer protocol gives the address of the first element and the real strides. cffi's
``from_buffer`` gives only the former, so strides are always read beside it: a transposed array
would look contiguous otherwise. (Seen with MLX 0.32.4.)
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks
from qwen_mfa.native.ffi import ffi

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowed:
    """The memory of an evaluated array. Valid while this object lives.

    Attributes:
        array: The array that owns the memory (kept alive).
        pointer: cffi ``char[]`` at element (0, …, 0).
        strides: In elements, one a dimension, none negative.
        span: Bytes from the pointer to the end of the last element that the array reaches.

    """

    array: mx.array
    pointer: Any
    strides: tuple[int, ...]
    span: int


def borrow(array: mx.array, *, rows: bool = True) -> Borrowed:
    """Borrow an evaluated array's memory.

    Args:
        array: Evaluated; any shape.
        rows: Ask for a contiguous last dimension.

    Only what the C interface cannot express (a negative stride or, with ``rows``, a last dimension
    that is not contiguous) is copied.

    """
    view = memoryview(array)  # type: ignore[arg-type]  # MLX's stubs omit the buffer protocol
    itemsize = view.itemsize
    shape = array.shape
    strides = tuple(
        0 if n == 1 else step // itemsize for n, step in zip(shape, view.strides or (), strict=True)
    )
    # A row that is one broadcast element (stride 0) is no more contiguous than one with gaps.
    has_rows = not rows or not shape or shape[-1] == 1 or strides[-1] == 1
    if any(step < 0 for step in strides) or not has_rows:
        copy = mx.contiguous(array)
        mx.eval(copy)
        return borrow(copy, rows=rows)
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    span = (reach + 1) * itemsize if prod(shape) else 0
    return Borrowed(array=array, pointer=ffi().from_buffer(array), strides=strides, span=span)


def is_head_interleaved(array: mx.array) -> bool:
    """Whether a BHSD array is a transposed view of dense BSHD memory, as hosts make them."""
    _, heads, rows, dim = array.shape
    steps = memoryview(array).strides or ()  # type: ignore[arg-type]
    item = array.itemsize
    return heads > 1 and rows > 1 and steps[3] == item and steps[1] == dim * item


# Up to this size a copy is quicker than asking MLX's stream for memory (seen with MLX 0.32.4).
_COPY_BYTES = 4 << 20


def fresh(
    shape: tuple[int, int, int, int],
    dtype: mx.Dtype,
    *,
    interleaved: bool,
    like: Borrowed | None = None,
) -> mx.array:
    """Return an evaluated BHSD array of unset memory that nothing else refers to.

    Args:
        shape: (B, H, S, D).
        dtype: Element type.
        interleaved: Lay it out as BSHD in memory, so that the usual
            ``transpose(0, 2, 1, 3).reshape(B, S, H * D)`` afterwards moves no data.
        like: A borrowed array; if it is small and has the shape, type and layout that are wanted,
            the result begins as a copy of it, because that is had sooner.

    """
    guards = _guards.get()
    if (
        guards is None
        and like is not None
        and can_begin_as_copy(shape, dtype, like, interleaved=interleaved)
    ):
        return mx.from_dlpack(like.array, copy=True)
    stream = working_stream()
    empty = mx.empty if guards is None else guards.empty
    batch, heads, rows, dim = shape
    if interleaved:
        out = empty((batch, rows, heads, dim), dtype=dtype, stream=stream)
        out = out.transpose(0, 2, 1, 3, stream=stream)
    else:
        out = empty(shape, dtype=dtype, stream=stream)
    mx.eval(out)
    return out


def can_begin_as_copy(
    shape: tuple[int, ...], dtype: mx.Dtype, like: Borrowed, *, interleaved: bool
) -> bool:
    """Whether `fresh` makes such an array as a copy of ``like``."""
    array = like.array
    if array.shape != shape or array.dtype != dtype or array.nbytes > _COPY_BYTES:
        return False
    # Of a dimension of size 1 the stride means nothing, yet DLPack refuses a negative one.
    if min(memoryview(array).strides or (0,)) < 0:  # type: ignore[arg-type]
        return False
    _, heads, rows, dim = shape
    steps = (dim, heads * dim) if interleaved else (rows * dim, dim)
    wanted = (heads * rows * dim, *steps, 1)
    return all(n == 1 or a == b for n, a, b in zip(shape, like.strides, wanted, strict=True))


class GuardZones:
    """Fresh arrays with known bytes around them, to see a kernel write where it must not.

    The bytes are NaN in every floating-point format, so that what is never written shows as well.
    """

    _BYTE = 0xFF
    _LEAST = 256  # elements before and after; after, at least as many as the array itself has

    def __init__(self) -> None:
        self._zones: list[tuple[mx.array, int, int]] = []

    def empty(
        self, shape: tuple[int, ...], dtype: mx.Dtype, stream: mx.Stream | None = None
    ) -> mx.array:
        """Return an array of ``shape`` between two guard zones."""
        count = prod(shape)
        after = max(count, self._LEAST)
        whole = (self._LEAST + count + after) * dtype.size
        base = mx.full((whole,), self._BYTE, dtype=mx.uint8, stream=stream)
        elements = base.view(dtype, stream=stream)[self._LEAST : self._LEAST + count]
        out = elements.reshape(shape, stream=stream)
        mx.eval(base, out)
        start = self._LEAST * dtype.size
        self._zones.append((base, start, start + count * dtype.size))
        return out

    def intact(self) -> bool:
        """Whether nothing was written outside the arrays."""
        for base, start, end in self._zones:
            data = bytes(memoryview(base))  # type: ignore[arg-type]
            outside = data[:start] + data[end:]
            if outside.count(self._BYTE) != len(outside):
                return False
        return True


_guards: ContextVar[GuardZones | None] = ContextVar("guards", default=None)


@contextmanager
def guard_zones() -> Iterator[GuardZones]:
    """Give the arrays that `fresh` makes in this context guard zones."""
    guards = GuardZones()
    token = _guards.set(guards)
    try:
        yield guards
    finally:
        _guards.reset(token)


_streams = threading.local()  # of forked children


def _after_fork() -> None:
    _streams.__dict__.clear()  # a forked child's stream is as dead in a child of its own


os.register_at_fork(after_in_child=_after_fork)  # a hook only: nothing runs until a fork


def working_stream() -> mx.Stream | None:
    """Return the stream for all that we compute: ``None``, the default one, nearly always.

    In a forked child MLX's default stream belongs to a thread that does not exist there, and
    evaluating on it waits for ever (seen with MLX 0.32.4; docs/reliability.md has a reproduction
    without us). A stream made in the child works. GPUs do not survive a fork in any case.
    """
    if not forks.happened() or mx.default_device().type != mx.DeviceType.cpu:
        return None
    stream: mx.Stream | None = getattr(_streams, "stream", None)
    if stream is None:
        stream = _streams.stream = mx.new_stream(mx.Device(mx.DeviceType.cpu))
    return stream
