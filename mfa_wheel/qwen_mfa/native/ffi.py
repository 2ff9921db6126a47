"""The C declarations of ``abi.cdef``, parsed once, on first use."""

from __future__ import annotations

from functools import cache
from typing import Any

from qwen_mfa.firstuse import first_use


def declarations() -> str:
    """Return the text of ``abi.cdef``, the one list of what we expect of a library."""
    from importlib.resources import files  # noqa: PLC0415 - slow to import

    return files("qwen_mfa.native").joinpath("abi.cdef").read_text(encoding="utf-8")


@cache
def ffi() -> Any:
    """Return the process's ``cffi.FFI`` (ABI mode: nothing is compiled).

    What it makes has attributes that only the declarations know: ``Any`` is confined to here.
    """
    from cffi import FFI, cparser  # noqa: PLC0415 - only where a library is used

    instance = FFI()
    instance.cdef(declarations())
    for lock in (instance._lock, cparser.lock):  # noqa: SLF001 - see `qwen_mfa.firstuse`
        first_use.covers(lock)
    return instance
