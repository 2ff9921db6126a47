"""Read the little of a PE file (Windows) that a wheel's tag is about: machine and kind.

Layout after Microsoft's "PE Format".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.binaries.reader import Malformed, whole

if TYPE_CHECKING:
    from build_tools.binaries.reader import Bytes

MACHINES = {0x14C: "win32", 0x8664: "win_amd64", 0xAA64: "win_arm64", 0x1C4: "win_arm32"}
IMAGE_FILE_DLL = 0x2000


@dataclass(frozen=True, kw_only=True)
class Pe:
    """Machine as in a wheel's platform tag, and whether the file is a library."""

    machine: str
    library: bool


def is_pe(head: bytes) -> bool:
    """Say whether ``head`` may start a PE file (`read` decides)."""
    return head[:2] == b"MZ"


def read(data: Bytes) -> Pe | None:
    """Read the COFF header; ``None`` for a plain DOS program or text that starts with MZ.

    Raises:
        Malformed: The file is cut inside its COFF header.

    """
    file = whole(data)
    try:
        (offset,) = file.unpack("I", 0x3C, "the DOS header")
        if file.take(offset, 4, "the PE signature") != b"PE\0\0":
            return None
    except Malformed:
        return None
    machine, *_, traits = file.unpack("HHIIIHH", offset + 4, "the COFF header")
    return Pe(
        machine=MACHINES.get(machine, f"machine {machine:#x}"),
        library=bool(traits & IMAGE_FILE_DLL),
    )
