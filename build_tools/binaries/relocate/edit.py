"""Edit the load commands of a thin Mach-O file as Apple's install_name_tool does.

Nothing moves but the load commands themselves: a longer name takes room from the padding before
the first section, a removed command gives its room back. (LIEF can do such edits too, but writes
__LINKEDIT anew, and cannot sign; macholib can neither remove an rpath nor lengthen a command.)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from build_tools.binaries import macho
from build_tools.binaries.relocate.adhoc import read_thin
from build_tools.binaries.relocate.errors import RelocationError

if TYPE_CHECKING:
    from build_tools.binaries.macho import Command, Slice
    from build_tools.binaries.relocate.plan import Plan

DYLIB_HEAD = 24  # command, size, name's offset, timestamp, two versions


def edit(data: bytes, plan: Plan, *, name: str) -> bytes:
    """Return ``data`` with the load commands that ``plan`` asks for; its signature becomes stale.

    Raises:
        RelocationError: The new names do not fit before the first section.

    """
    part = read_thin(data, name)
    commands = b"".join(_edited(data, part, plan))
    count = len(part.commands) - len(plan.remove_rpaths)
    start = macho.HEADER
    old_end = max((each.offset + each.size for each in part.commands), default=start)
    room = min((each.lowest_section for each in part.segments if each.lowest_section), default=0)
    end = start + len(commands)
    lack = end - max(room, old_end)
    if lack > 0:
        msg = (
            f"{name}: the new names need {lack} bytes more than there are before the first section."
            " Link with -headerpad_max_install_names."
        )
        raise RelocationError(msg)
    body = bytearray(data)
    body[start : max(end, old_end)] = commands.ljust(max(end, old_end) - start, b"\0")
    struct.pack_into("<II", body, 16, count, len(commands))
    return bytes(body)


def _edited(data: bytes, part: Slice, plan: Plan) -> list[bytes]:
    changes = dict(plan.changes)
    remove = list(plan.remove_rpaths)
    rpaths = iter(part.rpaths)
    dependencies = iter(name for name, _ in part.dependencies)
    result = []
    for command in part.commands:
        raw = data[command.offset : command.offset + command.size]
        if command.kind == macho.LC_RPATH:
            path = next(rpaths)
            if path in remove:
                remove.remove(path)
                continue
        elif command.kind == macho.LC_ID_DYLIB:
            raw = _renamed(raw, command, plan.name)
        elif command.kind in macho.DEPENDENCIES:
            old = next(dependencies)
            if old in changes:
                raw = _renamed(raw, command, changes[old])
        result.append(raw)
    return result


def _renamed(raw: bytes, command: Command, name: str) -> bytes:
    text = name.encode() + b"\0"
    size = -(-(DYLIB_HEAD + len(text)) // 8) * 8
    head = struct.pack("<III", command.kind, size, DYLIB_HEAD) + raw[12:DYLIB_HEAD]
    return (head + text).ljust(size, b"\0")
