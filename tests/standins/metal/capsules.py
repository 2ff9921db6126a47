"""STAND-IN for MLX's DLPack export on Metal: capsules whose data is an ``id<MTLBuffer>``.

The stand-in buffer begins at the page below the array's first element, so that there always is a
byte offset, and ends where the array does, so that an overrun shows.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import mlx.core as mx

from qwen_mfa.kernels.metal.dlpack import METAL, DLTensor
from qwen_mfa.native.ffi import ffi

_PAGE = 4096
_KINDS = {mx.float32: (2, 32), mx.float16: (2, 16), mx.bfloat16: (4, 16), mx.bool_: (6, 8)}
_NAME = b"dltensor"

_api = ctypes.pythonapi
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR]
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)

_alive: dict[int, tuple[Any, ...]] = {}
# What the tests change: the DLPack device, and whether data is a CPU address as before MLX 0.32.
settings: dict[str, Any] = {"device": METAL, "cpu_address": False}


def dlpack(array: mx.array, **_: object) -> object:
    """Stand in for ``mx.array.__dlpack__``."""
    import Metal

    view = memoryview(array)  # type: ignore[arg-type]
    pointer = int(ffi().cast("uintptr_t", ffi().from_buffer(array)))
    item, shape = view.itemsize, tuple(array.shape)
    steps = tuple(step // item for step in view.strides or ())
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) if prod(shape) else 0
    offset = pointer % _PAGE
    buffer = Metal.library.standin_buffer(pointer - offset, offset + reach * item)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*steps)
    code, bits = _KINDS[array.dtype]
    tensor = DLTensor(
        data=pointer - offset if settings["cpu_address"] else buffer,
        device_type=settings["device"],
        device_id=0,
        ndim=len(shape),
        code=code,
        bits=bits,
        lanes=1,
        shape=sizes,
        strides=strides,
        byte_offset=offset,
    )
    address = ctypes.addressof(tensor)
    _alive[address] = (tensor, sizes, strides, view, buffer)
    return _api.PyCapsule_New(address, _NAME, _release)


def dlpack_device(_: mx.array) -> tuple[int, int]:
    """Stand in for ``mx.array.__dlpack_device__``."""
    return settings["device"], 0


@_DESTRUCTOR  # type: ignore[untyped-decorator]  # ctypes' own
def _release(capsule: int) -> None:
    import Metal

    Metal.library.standin_buffer_release(_alive.pop(_get_pointer(capsule, _NAME))[-1])
