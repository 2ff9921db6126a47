"""The C functions that a library exports, held against the header that it must follow."""

from __future__ import annotations

from pathlib import Path

from build_tools.binaries import elf, macho
from build_tools.binaries.reader import Malformed
from build_tools.source.header import declared
from build_tools.support.errors import BuildError

# What the overlay adds to upstream's header.
OVERLAY = ("mfa_shader_origins",)


def exported(library: Path) -> frozenset[str]:
    """Return the names that ``library`` defines for others; raise `BuildError` for what is none."""
    data = library.read_bytes()
    try:
        return elf.read(data).exports if elf.is_elf(data) else macho.read(data).exports
    except Malformed as error:
        msg = f"{library.name} is no sound library: {error}"
        raise BuildError(msg) from error


def check(library: Path, header: Path) -> list[str]:
    """Return the checked names.

    Raises:
        BuildError: The library lacks functions that the header, or the overlay, promises.

    """
    wanted = [*declared(header.read_text(encoding="utf-8")), *OVERLAY]
    missing = sorted(set(wanted) - exported(library))
    if missing:
        msg = (
            f"{library.name} does not export {', '.join(missing)}, which {header.name} or the "
            "overlay promises. The pin and its header do not belong together; write a new pin."
        )
        raise BuildError(msg)
    return wanted
