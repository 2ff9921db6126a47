"""What macOS says of itself, asked without starting a program."""

from __future__ import annotations

from qwen_mfa.machine import SYSTEM as SYSTEM  # noqa: PLC0414 - re-exported
from qwen_mfa.machine import sysctl as sysctl  # noqa: PLC0414


def why_not_macos() -> str | None:
    """Return why Metal cannot be here at all, or ``None``."""
    return None if SYSTEM == "darwin" else f"Metal needs macOS, and this is {SYSTEM}"


def macos_version() -> tuple[int, ...]:
    """Return the version of macOS, such as ``(26, 1)``; empty if it does not say.

    From the kernel: `platform.mac_ver` reads a file that, for a Python built with an old SDK, the
    system replaces by one that says 10.16.
    """
    words = sysctl("kern.osproductversion").split(".")
    return tuple(int(word) for word in words if word.isdigit())


def is_translated() -> bool:
    """Whether this process runs under Rosetta (the value does not exist on Intel machines)."""
    return sysctl("sysctl.proc_translated") == "1"


def is_arm64() -> bool:
    """Whether the machine itself is Apple silicon, whatever this process runs as."""
    return sysctl("hw.optional.arm64") == "1"
