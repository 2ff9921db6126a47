"""STAND-IN for PyObjC's ``Metal``: as much of it as the package uses, over the stand-in library."""

from __future__ import annotations

import ctypes
import os
from typing import Any

MTLCommandBufferStatusCompleted = 4
MTLCommandBufferStatusError = 5

# The C stand-in is both libraries in one; the real one is linked with a stand-in of Metal.
library = ctypes.CDLL(os.environ.get("METAL_STANDIN_LIBRARY") or os.environ["QWEN_MFA_LIBRARY"])
library.standin_commands.restype = ctypes.c_void_p
library.standin_buffer.restype = ctypes.c_void_p
library.standin_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
library.standin_buffer_length.restype = ctypes.c_size_t
library.standin_misuses.restype = ctypes.c_char_p
for _name in (
    *("standin_commands_release", "standin_buffer_release", "standin_buffer_length"),
    *("standin_commit", "standin_wait", "standin_status", "standin_is_buffer"),
):
    getattr(library, _name).argtypes = [ctypes.c_void_p]

NAMES = {7: ("Apple M1", "g13g"), 8: ("Apple M2", "g14g"), 9: ("Apple M3 Max", "g15s"),
         10: ("Apple M5", "g17g")}  # fmt: skip


def names() -> tuple[str, str]:
    """Return name and architecture of the device that the switch ``family`` stands for."""
    name, architecture = NAMES[library.standin_get(b"family")]
    return name, f"applegpu_{architecture}"


class _Text:
    def __init__(self, text: str) -> None:
        self._text = text

    def name(self) -> str:
        return self._text

    def localizedDescription(self) -> str:
        return self._text


class CommandBuffer:
    def __init__(self) -> None:
        self.pointer = library.standin_commands()

    def commit(self) -> None:
        if library.standin_commit(self.pointer):
            msg = "a command buffer was committed twice (Metal would end the process)"
            raise RuntimeError(msg)

    def waitUntilCompleted(self) -> None:
        library.standin_wait(self.pointer)

    def status(self) -> int:
        return int(library.standin_status(self.pointer))

    def error(self) -> _Text | None:
        failed = self.status() == MTLCommandBufferStatusError
        return _Text("Caused GPU Timeout Error (stand-in)") if failed else None

    def __del__(self) -> None:
        library.standin_commands_release(self.pointer)


class CommandQueue:
    def commandBuffer(self) -> CommandBuffer:
        return CommandBuffer()


class Device:
    def name(self) -> str:
        return names()[0]

    def architecture(self) -> _Text:
        return _Text(names()[1])

    def supportsFamily_(self, family: int) -> bool:
        return 1001 <= family <= 1000 + int(library.standin_get(b"family"))

    def newCommandQueue(self) -> CommandQueue | None:
        return None if library.standin_get(b"no_queue") else CommandQueue()


class Buffer:
    """What ``objc.objc_object(c_void_p=…)`` gives for an ``id<MTLBuffer>``."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def length(self) -> int:
        return int(library.standin_buffer_length(self.pointer))


def MTLCreateSystemDefaultDevice() -> Any:
    return None if library.standin_get(b"no_device") else Device()
