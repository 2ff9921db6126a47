"""Relocate a Mach-O library: a relative name, no foreign rpaths, a fresh ad hoc signature."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from build_tools.binaries import macho, systems
from build_tools.binaries.macho import MachO
from build_tools.binaries.relocate.adhoc import read_sound, sign
from build_tools.binaries.relocate.edit import edit
from build_tools.support.errors import RelocationError
from build_tools.support.process import capture

ANY_MACOS = (999, 0)
SWIFT_RUNTIME = "/usr/lib/swift"
OWN_FOLDER = "@loader_path"


def relocate(
    data: bytes,
    *,
    filename: str,
    minimum_os: tuple[int, int] = (15, 0),
    architecture: str = "arm64",
) -> bytes:
    """Return a library that loads from whatever folder it lies in.

    Args:
        data: A thin library.
        filename: Its name in the wheel.
        minimum_os: The macOS of the wheel's tag.
        architecture: The processor of the wheel's tag.

    Raises:
        RelocationError: It is no such library, needs a newer macOS than the tag says, or depends on
            something that is not the system's.

    """
    part = read_sound(data, filename)
    if part.file_type != macho.MH_DYLIB:
        msg = f"{filename} is not a dynamic library (Mach-O file type {part.file_type})"
        raise RelocationError(msg)
    if part.architecture != architecture:
        msg = f"{filename} is built for {part.architecture}, not for {architecture}"
        raise RelocationError(msg)
    if _macos(part, filename) > minimum_os:
        needs, admits = (".".join(map(str, each)) for each in (part.minimum_os or (), minimum_os))
        msg = (
            f"{filename} needs macOS {needs}, the wheel's tag admits {admits}."
            f" Build it with MACOSX_DEPLOYMENT_TARGET={admits}."
        )
        raise RelocationError(msg)
    for dependency, kind in part.dependencies:
        if kind != "weak" and not _on_each_mac(dependency, part):
            msg = f"{filename} depends on {dependency}, which is not the system's. Link it in."
            raise RelocationError(msg)
    edited = edit(data, part, name=f"{OWN_FOLDER}/{filename}", remove=_superfluous(part.rpaths))
    return sign(edited, identifier=filename)


def _macos(part: MachO, filename: str) -> tuple[int, int]:
    """Return the macOS that ``part`` needs."""
    if part.platform != macho.MACOS or part.minimum_os is None:
        msg = f"{filename} is built for {part.platform or 'an unknown platform'}, not for macOS"
        raise RelocationError(msg)
    return part.minimum_os


def _on_each_mac(dependency: str, part: MachO) -> bool:
    swift = dependency.startswith("@rpath/libswift") and SWIFT_RUNTIME in part.rpaths
    return swift or systems.on_macos(dependency)


def _superfluous(rpaths: tuple[str, ...]) -> list[str]:
    """Return the rpaths to remove, once for each time that one occurs too often."""
    kept = {SWIFT_RUNTIME, OWN_FOLDER}
    # macOS 15 refuses a library in which an rpath occurs twice.
    doubles = Counter(path for path in rpaths if path in kept) - Counter(kept)
    return [path for path in rpaths if path not in kept] + list(doubles.elements())


def embed(
    library: Path, *, architecture: str = "arm64", minimum_os: tuple[int, int] | None = None
) -> None:
    """Relocate the file ``library``; it is replaced as a whole, or not at all.

    Args:
        library: A thin library.
        architecture: The processor of the wheel's tag.
        minimum_os: The macOS of the wheel's tag; the library's own, whatever it is, if ``None``.

    Raises:
        RelocationError: It is not fit for a wheel.
        ToolError: macOS rejects the signature.

    """
    data = relocate(
        library.read_bytes(),
        filename=library.name,
        minimum_os=minimum_os or ANY_MACOS,
        architecture=architecture,
    )
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=library.parent) as folder:
        work = Path(folder) / library.name
        work.write_bytes(data)
        work.chmod(0o755)
        # Elsewhere nothing can confirm the signature but the tests.
        if sys.platform == "darwin" and shutil.which("codesign"):
            capture(["codesign", "--verify", "--strict", "--verbose=2", str(work)])
        work.replace(library)


def platform_tag(library: Path) -> str:
    """Return the lowest ``macosx_X_Y_<arch>`` tag that a relocated library allows."""
    part = read_sound(library.read_bytes(), library.name)
    major, minor = _macos(part, library.name)
    # Since macOS 11 only the major version counts; a tag says 0, so a newer minor means the next.
    if major >= 11 and minor:
        major, minor = major + 1, 0
    return f"macosx_{major}_{minor}_{part.architecture}"
