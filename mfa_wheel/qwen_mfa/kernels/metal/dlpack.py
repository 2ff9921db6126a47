"""MLX's Metal buffers by DLPack: the real ``id<MTLBuffer>``, a byte offset and strides. No copies.

Structures from ``dlpack.h`` (DLPack 1.x); MLX exports them in ``python/src/convert.cpp``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_mfa.errors import MetalError

if TYPE_CHECKING:
    import mlx.core as mx

METAL = 8  # kDLMetal
_NAME, _VERSIONED_NAME = b"dltensor", b"dltensor_versioned"


class DLTensor(ctypes.Structure):
    """``DLTensor``; for Metal, ``data`` is an ``id<MTLBuffer>``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An evaluated array's Metal buffer. Valid as long as this object lives.

    Attributes:
        capsule: Keeps the array, and so the buffer, alive and out of MLX's cache of free buffers.
        buffer: Address of the ``MTLBuffer`` object.
        offset: Bytes from the buffer's start to element (0, …, 0).
        shape: Sizes.
        strides: In elements.

    """

    capsule: Any
    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def export(array: mx.array) -> Exported:
    """Return the Metal buffer of an evaluated array.

    Raises:
        MetalError: MLX hands out something else.

    """
    capsule = array.__dlpack__()
    tensor = _tensor(capsule)
    if tensor.device_type != METAL:
        msg = f"MLX exports device type {tensor.device_type} by DLPack, not Metal ({METAL})"
        raise MetalError(msg)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if shape != tuple(array.shape) or tensor.bits != 8 * array.itemsize or tensor.lanes != 1:
        msg = f"MLX's DLPack export says {shape} of {tensor.bits} bits for {array.shape}"
        raise MetalError(msg)
    if not tensor.data:
        msg = "MLX's DLPack export has no buffer"
        raise MetalError(msg)
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    return Exported(
        capsule=capsule,
        buffer=tensor.data,
        offset=tensor.byte_offset,
        shape=shape,
        strides=dense(shape) if strides is None else strides,
    )


def why_not_metal(array: mx.array) -> str | None:
    """Return why an evaluated array's export is no Metal buffer, without sending it a message.

    MLX before 0.32 said "Metal" and gave a CPU address: shown by the buffer protocol's address
    being the same.
    """
    kind = array.__dlpack_device__()[0]
    if kind != METAL:
        return f"its arrays are on DLPack device {kind}, not {METAL}"
    try:
        found = export(array)
    except MetalError as error:
        return str(error)
    view = (ctypes.c_char * array.nbytes).from_buffer(memoryview(array))  # type: ignore[arg-type]
    address = ctypes.addressof(view)
    if address in (found.buffer, found.buffer + found.offset):
        return "its DLPack export has a CPU address where the Metal buffer should be"
    return None


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements there are from the first one to the last that is reached."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense array, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _tensor(capsule: Any) -> DLTensor:
    # Not consumed (the capsule keeps its name): its own destructor releases the array.
    api = ctypes.pythonapi
    api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    if api.PyCapsule_IsValid(capsule, _NAME):
        return DLTensor.from_address(api.PyCapsule_GetPointer(capsule, _NAME))
    if api.PyCapsule_IsValid(capsule, _VERSIONED_NAME):
        whole = _Versioned.from_address(api.PyCapsule_GetPointer(capsule, _VERSIONED_NAME))
        if whole.major == 1:
            tensor: DLTensor = whole.tensor
            return tensor
        msg = f"MLX exports DLPack {whole.major}.{whole.minor}, and 1.x is understood"
        raise MetalError(msg)
    msg = f"MLX's __dlpack__ returned {capsule!r}, not a DLPack capsule"
    raise MetalError(msg)
