"""Edit the load commands of a thin Mach-O file as Apple's install_name_tool does.

Nothing moves but the load commands themselves: a longer name takes room from the padding before
the first section, a removed command gives its room back. (LIEF can do such edits too, but writes
__LINKEDIT anew, and cannot sign; macholib can neither remove an rpath nor lengthen a command.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from build_tools.binaries import macho
from build_tools.binaries.macho import MachO
from build_tools.support.errors import RelocationError

DYLIB_HEAD = 24  # command, size, name's offset, timestamp, two versions


def edit(data: bytes, part: MachO, *, name: str, remove: Sequence[str]) -> bytes:
    """Return ``data`` with another install name and fewer rpaths; its signature becomes stale.

    Args:
        data: A library.
        part: What it says.
        name: The new install name.
        remove: Rpaths to remove, each as often as it stands here.

    Raises:
        RelocationError: The new name does not fit before the first section.

    """
    kept = list(_edited(data, part, name, list(remove)))
    commands = b"".join(kept)
    start = macho.HEADER
    old_end = max((each.offset + each.size for each in part.commands), default=start)
    room = min((each.lowest_section for each in part.segments if each.lowest_section), default=0)
    end = start + len(commands)
    lack = end - max(room, old_end)
    if lack > 0:
        msg = (
            f"{name}: the new name needs {lack} bytes more than there are before the first section."
            " Link with -headerpad_max_install_names."
        )
        raise RelocationError(msg)
    body = bytearray(data)
    body[start : max(end, old_end)] = commands.ljust(max(end, old_end) - start, b"\0")
    struct.pack_into("<II", body, 16, len(kept), len(commands))
    return bytes(body)


def _edited(data: bytes, part: MachO, name: str, remove: list[str]) -> Iterator[bytes]:
    rpaths = iter(part.rpaths)
    for command in part.commands:
        raw = data[command.offset : command.offset + command.size]
        if command.kind == macho.LC_RPATH and (path := next(rpaths)) in remove:
            remove.remove(path)
        elif command.kind == macho.LC_ID_DYLIB:
            text = name.encode() + b"\0"
            size = -(-(DYLIB_HEAD + len(text)) // 8) * 8
            head = struct.pack("<III", command.kind, size, DYLIB_HEAD) + raw[12:DYLIB_HEAD]
            yield (head + text).ljust(size, b"\0")
        else:
            yield raw
