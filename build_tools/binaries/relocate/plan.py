"""Decide what must change in a Mach-O library."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.binaries import systems
from build_tools.binaries.relocate.errors import RelocationError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from build_tools.binaries.macho import Slice

SWIFT_RUNTIME = "/usr/lib/swift"
OWN_FOLDER = "@loader_path"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Changes to one architecture of one library.

    Attributes:
        name: The new install name.
        changes: (old, new) names of dependencies.
        remove_rpaths: Rpaths to remove, once for each time that one occurs too often.

    """

    name: str
    changes: tuple[tuple[str, str], ...]
    remove_rpaths: tuple[str, ...]


def plan(
    part: Slice, *, filename: str, companions: AbstractSet[str], minimum_os: tuple[int, int]
) -> Plan:
    """Plan the relocation of ``part``.

    Args:
        part: One architecture, as read.
        filename: Name of the library in the wheel.
        companions: Names of the libraries that lie in the same folder of the wheel.
        minimum_os: The macOS of the wheel's tag.

    Raises:
        RelocationError: The library is not for macOS, needs a newer one than the tag says, or
            depends on something that is neither a companion nor the system's.

    """
    if part.platform != "macos" or part.minimum_os is None:
        msg = f"{filename} is built for {part.platform or 'an unknown platform'}, not for macOS"
        raise RelocationError(msg)
    if part.minimum_os > minimum_os:
        needs, admits = (".".join(map(str, each)) for each in (part.minimum_os, minimum_os))
        msg = (
            f"{filename} needs macOS {needs}, the wheel's tag admits {admits}."
            f" Build it with MACOSX_DEPLOYMENT_TARGET={admits}."
        )
        raise RelocationError(msg)
    changes = []
    for dependency, kind in dict.fromkeys(part.dependencies):
        new = _dependency(dependency, kind, part, companions, filename)
        if new != dependency:
            changes.append((dependency, new))
    kept = {path for path in part.rpaths if path in {SWIFT_RUNTIME, OWN_FOLDER}}
    removed = [path for path in part.rpaths if path not in kept]
    # macOS 15 refuses a library in which an rpath occurs twice.
    counts = Counter(path for path in part.rpaths if path in kept)
    removed += [path for path, count in counts.items() for _ in range(count - 1)]
    return Plan(
        name=f"{OWN_FOLDER}/{filename}", changes=tuple(changes), remove_rpaths=tuple(removed)
    )


def _dependency(
    name: str, kind: str, part: Slice, companions: AbstractSet[str], filename: str
) -> str:
    base = posixpath.basename(name)
    if systems.on_macos(name):
        return name
    if base in companions:
        return f"{OWN_FOLDER}/{base}"
    swift = name.startswith("@rpath/libswift") and SWIFT_RUNTIME in part.rpaths
    if swift or kind == "weak":
        return name
    msg = (
        f"{filename} depends on {name}, which is neither the system's nor embedded beside it."
        f" Embed {base} too, or link it statically."
    )
    raise RelocationError(msg)
