"""STAND-IN: an MLX whose default device says that it is a GPU, and that refuses float64 there.

Everything is computed on the CPU still. What is watched is what MLX itself checks when an operation
is made (`array::array` in mlx/array.cpp): no operation on a GPU's stream takes or gives float64. An
operation's device is that of its ``stream=``, else that of the innermost ``mx.stream``, else the
default one. Arrays that are made of Python's numbers, and reading an array, are no operations.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Put = Callable[[object, str, Any], None]

ROOT = Path(__file__).resolve().parents[3]
SITE = Path(__file__).parent / "site"
MESSAGE = "float64 is not supported on the GPU"

# Those of MLX's functions and methods that make no operation of their own.
_FUNCTIONS = {
    *("eval", "async_eval", "compile", "checkpoint", "custom_function", "grad", "value_and_grad"),
    *("jvp", "vjp", "vmap", "stream", "synchronize", "default_device", "default_stream"),
    *("set_default_device", "set_default_stream", "new_stream", "new_thread_local_stream"),
    *("new_thread_unsafe_stream", "clear_streams", "clear_cache", "device_count", "device_info"),
    *("is_available", "result_type", "issubdtype", "isdtype", "can_cast", "broadcast_shapes"),
    *("save", "savez", "savez_compressed", "save_safetensors", "save_gguf", "load"),
    *("export_function", "export_to_dot", "exporter", "import_function", "einsum_path"),
    *("disable_compile", "enable_compile", "set_printoptions", "get_printoptions", "printoptions"),
    *("get_array_buffer_size", "from_dlpack"),
}
_METHODS = {
    *("__init__", "__array__", "__array_namespace__", "__bool__", "__bytes__", "__complex__"),
    *("__copy__", "__deepcopy__", "__dlpack__", "__dlpack_device__", "__float__", "__format__"),
    *("__getstate__", "__setstate__", "__hash__", "__index__", "__int__", "__len__", "__repr__"),
    *("item", "tolist"),
}
_COUNTERS = ("get_", "set_", "reset_")  # of memory

_asked = threading.local()


class _Default:
    device = mx.Device(mx.DeviceType.gpu)


_default = _Default()


def _set_default_device(device: Any) -> None:
    """Only remember it: everything is computed on the CPU."""
    _default.device = device if isinstance(device, mx.Device) else mx.Device(device)


def activate(put: Put) -> None:
    """Watch every operation, through ``put(object, name, value)``."""
    for module in (mx, mx.fast, mx.linalg, mx.fft, mx.random):
        for name in dir(module):
            found = getattr(module, name)
            is_function = type(found).__name__ == "nb_func"
            if is_function and name not in _FUNCTIONS and not name.startswith(_COUNTERS):
                put(module, name, _watched(found))
    for name in dir(mx.array):
        found = getattr(mx.array, name)
        if type(found).__name__ in {"nb_func", "nb_method"} and name not in _METHODS:
            put(mx.array, name, _watched(found))
    put(mx, "stream", functools.partial(_Asked, mx.stream))
    _default.device = mx.Device(mx.DeviceType.gpu)
    put(mx, "default_device", lambda: _default.device)
    put(mx, "set_default_device", _set_default_device)


def environment() -> dict[str, str]:
    """Return what makes child processes use the stand-in, too."""
    inherited = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join(filter(None, [str(SITE), inherited]))
    return {"PYTHONPATH": paths, "QWEN_MFA_GPU_STANDIN": str(ROOT)}


class _Asked:
    """`mx.stream`, remembering what was asked for."""

    def __init__(self, stream: Callable[[Any], Any], where: Any) -> None:
        self._inner = stream(where)
        self._where = where

    def __enter__(self) -> Any:
        _stack().append(self._where)
        return self._inner.__enter__()

    def __exit__(self, *error: object) -> Any:
        _stack().pop()
        return self._inner.__exit__(*error)


def _stack() -> list[Any]:
    if not hasattr(_asked, "stack"):
        _asked.stack = []
    found: list[Any] = _asked.stack
    return found


def _innermost() -> Any:
    """Return the device or stream that was asked for last and is not left, or the default."""
    return _stack()[-1] if _stack() else _default.device


def _is_cpu(where: Any) -> bool:
    device = getattr(where, "device", where)  # of a stream
    return bool(getattr(device, "type", device) == mx.DeviceType.cpu)


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("stream")
        if _is_cpu(_innermost() if asked is None else asked):
            return function(*args, **kwargs)
        if any(array.dtype == mx.float64 for array in _arrays((*args, *kwargs.values()))):
            raise ValueError(MESSAGE)
        result = function(*args, **kwargs)
        if any(array.dtype == mx.float64 for array in _arrays(result)):
            raise ValueError(MESSAGE)
        return result

    return watched


def _arrays(values: Any) -> Iterator[mx.array]:
    if isinstance(values, mx.array):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _arrays(value)
