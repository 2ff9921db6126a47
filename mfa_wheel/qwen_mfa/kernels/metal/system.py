"""What macOS says of itself, asked without starting a program."""

from __future__ import annotations

import ctypes
import sys

SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch


def sysctl(name: str) -> str | None:
    """Return a value of macOS's ``sysctl``: text, or an integer in decimal; ``None`` if unknown."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysctlbyname"):
        return None
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) != 0:
        return None
    data = ctypes.create_string_buffer(size.value + 1)
    if libc.sysctlbyname(name.encode(), data, ctypes.byref(size), None, 0) != 0:
        return None
    raw = data.raw[: size.value]
    # Texts end with a zero byte; small integers hold zero bytes elsewhere too.
    if (
        raw.endswith(b"\0")
        and b"\0" not in raw[:-1]
        and raw[:-1].decode("ascii", "?").isprintable()
    ):
        return raw[:-1].decode("ascii", "replace")
    return str(int.from_bytes(raw, sys.byteorder))


def macos_version() -> tuple[int, ...]:
    """Return the version of macOS, such as ``(26, 1)``; empty if it does not say.

    From the kernel: `platform.mac_ver` reads a file that, for a Python built with an old SDK, the
    system replaces by one that says 10.16.
    """
    words = (sysctl("kern.osproductversion") or "").split(".")
    return tuple(int(word) for word in words if word.isdigit())


def is_translated() -> bool:
    """Whether this process runs under Rosetta (the value does not exist on Intel machines)."""
    return sysctl("sysctl.proc_translated") == "1"


def is_arm64() -> bool:
    """Whether the machine itself is Apple silicon, whatever this process runs as."""
    return sysctl("hw.optional.arm64") == "1"
