"""Relocate Mach-O libraries: thin, relative names, no foreign rpaths, a fresh ad hoc signature."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from build_tools.binaries import macho
from build_tools.binaries.reader import Malformed
from build_tools.binaries.relocate.adhoc import read_thin, sign
from build_tools.binaries.relocate.edit import edit
from build_tools.binaries.relocate.errors import RelocationError
from build_tools.binaries.relocate.plan import plan
from build_tools.support.process import capture

MAX_SIZE = 1024**3
ANY_MACOS = (999, 0)


def relocate(
    data: bytes,
    *,
    filename: str,
    companions: frozenset[str] = frozenset(),
    minimum_os: tuple[int, int] = (15, 0),
    architecture: str = "arm64",
) -> bytes:
    """Return a library that loads from whatever folder it lies in.

    Args:
        data: A thin or universal library.
        filename: Its name in the wheel.
        companions: Names of the libraries beside it in the wheel.
        minimum_os: The macOS of the wheel's tag.
        architecture: The one to keep.

    Raises:
        RelocationError: See `plan`, `thin` and `edit`.

    """
    slim = thin(data, architecture, filename)
    part = read_thin(slim, filename)
    if part.file_type != macho.MH_DYLIB:
        msg = f"{filename} is not a dynamic library (Mach-O file type {part.file_type})"
        raise RelocationError(msg)
    todo = plan(part, filename=filename, companions=companions, minimum_os=minimum_os)
    return sign(edit(slim, todo, name=filename), identifier=filename)


def embed(
    library: Path, *, architecture: str = "arm64", minimum_os: tuple[int, int] | None = None
) -> None:
    """Relocate the file ``library``, which stands alone; it is replaced as a whole, or not at all.

    Args:
        library: A thin or universal library.
        architecture: The one to keep.
        minimum_os: The macOS of the wheel's tag; the library's own, whatever it is, if ``None``.

    Raises:
        RelocationError: It is not fit for a wheel.
        ToolError: macOS rejects the signature.

    """
    data = relocate(
        read_library(library),
        filename=library.name,
        minimum_os=minimum_os or ANY_MACOS,
        architecture=architecture,
    )
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=library.parent) as folder:
        work = Path(folder) / library.name
        work.write_bytes(data)
        work.chmod(0o755)
        confirm_signature(work)
        work.replace(library)


def platform_tag(library: Path) -> str:
    """Return the lowest ``macosx_X_Y_<arch>`` tag that a relocated library allows."""
    part = read_thin(read_library(library), library.name)
    if part.minimum_os is None or part.platform != "macos":
        msg = f"{library.name} is built for {part.platform or 'an unknown platform'}, not for macOS"
        raise RelocationError(msg)
    major, minor = part.minimum_os
    # Since macOS 11 only the major version counts; a tag says 0, so a newer minor means the next.
    if major >= 11 and minor:
        major, minor = major + 1, 0
    return f"macosx_{major}_{minor}_{part.architecture}"


def thin(data: bytes, architecture: str, name: str) -> bytes:
    """Return the file of one architecture.

    Raises:
        RelocationError: The file is no Mach-O file, or lacks that architecture.

    """
    try:
        parts = macho.read(data) if macho.is_macho(data[:8]) else ()
    except Malformed as error:
        msg = f"{name} is no sound Mach-O file: {error}"
        raise RelocationError(msg) from error
    if not parts:
        msg = f"{name} is no Mach-O file"
        raise RelocationError(msg)
    for part in parts:
        if part.architecture == architecture:
            return part.reader.take(0, part.reader.size, "the slice")
    held = ", ".join(part.architecture for part in parts)
    msg = f"{name} is built for {held}, not for {architecture}"
    raise RelocationError(msg)


def confirm_signature(file: Path) -> None:
    """Have macOS confirm the signature of ``file``; elsewhere nothing can but the tests.

    Raises:
        ToolError: `codesign` rejects it, with its own words.

    """
    if sys.platform == "darwin" and shutil.which("codesign"):
        capture(["codesign", "--verify", "--strict", "--verbose=2", str(file)])


def read_library(path: Path) -> bytes:
    """Read a library; raise `RelocationError` for what is no regular file of sensible size."""
    try:
        if not path.is_file():
            msg = f"{path} is no file. Give the path of a library."
            raise RelocationError(msg)
        size = path.stat().st_size
        if size > MAX_SIZE:
            msg = f"{path} has {size:,} bytes, more than any library that fits into a wheel"
            raise RelocationError(msg)
        return path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise RelocationError(msg) from error
