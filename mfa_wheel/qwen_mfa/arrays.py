"""Borrowing the memory of MLX arrays on the CPU, without copies, and making fresh outputs.

MLX's buffer protocol gives the address of the first element and the real strides. cffi's
``from_buffer`` gives only the former, so strides are always read beside it: a transposed array
would look contiguous otherwise. (Seen with MLX 0.32.4.)
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx

from qwen_mfa._ffi import ffi


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
    if any(step < 0 for step in strides) or (rows and strides and strides[-1] > 1):
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


def fresh(shape: tuple[int, int, int, int], dtype: mx.Dtype, *, interleaved: bool) -> mx.array:
    """Return an evaluated BHSD array of unset memory that nothing else refers to.

    Args:
        shape: (B, H, S, D).
        dtype: Element type.
        interleaved: Lay it out as BSHD in memory, so that the usual
            ``transpose(0, 2, 1, 3).reshape(B, S, H * D)`` afterwards moves no data.

    """
    stream = working_stream()
    batch, heads, rows, dim = shape
    if interleaved:
        out = mx.empty((batch, rows, heads, dim), dtype=dtype, stream=stream)
        out = out.transpose(0, 2, 1, 3, stream=stream)
    else:
        out = mx.empty(shape, dtype=dtype, stream=stream)
    mx.eval(out)
    return out


_forked = False
_local = threading.local()


def _after_fork() -> None:
    global _forked  # noqa: PLW0603
    _forked = True


os.register_at_fork(after_in_child=_after_fork)  # a hook only: nothing runs until a fork


def working_stream() -> mx.Stream | None:
    """Return the stream for our own small operations: ``None``, the default one, nearly always.

    In a forked child MLX's default stream belongs to a thread that does not exist there, and
    evaluating on it waits for ever (seen with MLX 0.32.4). A stream made in the child works.
    """
    if not _forked:
        return None
    stream: mx.Stream | None = getattr(_local, "stream", None)
    if stream is None:
        stream = _local.stream = mx.new_stream(mx.Device(mx.DeviceType.cpu))
    return stream
