"""Makes a Linux library fit to be embedded, and tells the platform tag that it honestly has."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from build_tools.errors import ToolError
from build_tools.process import run

if TYPE_CHECKING:
    from pathlib import Path

# What every glibc system has; anything else would have to be in the wheel.
SYSTEM_LIBRARIES = {
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}
# SwiftPM links every product against the Swift runtime, C-only ones too.
UNUSED_RUNTIME = "libswiftCore.so"
OLDEST_MANYLINUX = (2, 17)  # manylinux2014, the oldest that package installers still meet


def make_embeddable(library: Path, *, log: Path) -> None:
    """Remove run paths and the unused Swift runtime from ``library``; check what is left.

    Raises:
        ToolError: It uses the Swift runtime, or depends on something that is not the system's.

    """
    if sys.platform != "linux":
        return
    used = [name for name in _undefined(library) if name.startswith(("swift_", "_swift", "$s"))]
    if used:
        msg = (
            f"{library.name} uses the Swift runtime ({used[0]}, …), which the wheel does not carry"
        )
        raise ToolError(msg)
    edit = ["patchelf", "--remove-rpath"]
    if UNUSED_RUNTIME in _needed(library):
        edit += ["--remove-needed", UNUSED_RUNTIME]
    run([*edit, str(library)], log=log)
    foreign = set(_needed(library)) - SYSTEM_LIBRARIES
    if foreign:
        msg = f"{library.name} depends on {', '.join(sorted(foreign))}, not on the system alone"
        raise ToolError(msg)


def manylinux_tag(library: Path) -> str:
    """Return the lowest ``manylinux_X_Y_<arch>`` tag that the library's glibc symbols allow."""
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        machine = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf["e_machine"])
        if machine is None:
            msg = f"{library.name} is for {elf['e_machine']}, for which there is no manylinux tag"
            raise ToolError(msg)
        newest = OLDEST_MANYLINUX
        for section in elf.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for _, entries in section.iter_versions():
                    for entry in entries:
                        match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", entry.name)
                        if match:
                            newest = max(newest, (int(match[1]), int(match[2])))
    return f"manylinux_{newest[0]}_{newest[1]}_{machine}"


def _needed(library: Path) -> list[str]:
    with library.open("rb") as stream:
        return [
            str(tag.needed)  # type: ignore[attr-defined]  # set by name, unknown to the stubs
            for section in ELFFile(stream).iter_sections()
            if isinstance(section, DynamicSection)
            for tag in section.iter_tags("DT_NEEDED")
        ]


def _undefined(library: Path) -> list[str]:
    with library.open("rb") as stream:
        return [
            symbol.name
            for section in ELFFile(stream).iter_sections()
            if isinstance(section, SymbolTableSection) and section.name == ".dynsym"
            for symbol in section.iter_symbols()
            if symbol["st_shndx"] == "SHN_UNDEF"
        ]
