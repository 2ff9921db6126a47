"""The C functions that a library exports, held against the header that it must follow."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from build_tools.source.header import declared
from build_tools.support import process
from build_tools.support.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

NM_HINT = "Debian: `apt-get install binutils`; macOS: `xcode-select --install`."
# What the overlay adds to upstream's header.
OVERLAY = ("mfa_shader_origins",)


def exported(library: Path) -> set[str]:
    """Return the names that ``library`` defines for others."""
    nm = process.find("nm", hint=NM_HINT)
    mac = platform.system() == "Darwin"
    options = ["-gU"] if mac else ["-D", "--defined-only"]
    names = {
        line.split()[-1].split("@")[0]
        for line in process.capture([nm, *options, str(library)]).splitlines()
        if line.strip()
    }
    # Mach-O puts an underscore before every C name.
    return {name.removeprefix("_") for name in names} if mac else names


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
