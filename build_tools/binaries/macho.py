"""Read thin 64-bit Mach-O files as facts.

Layouts after Apple's <mach-o/loader.h>.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_tools.binaries.exports import export_trie
from build_tools.binaries.reader import MAX_STRING, BoundedReader, Malformed, readable

UNIVERSAL, THIN = b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe"
HEADER = 32
MAX_COMMANDS = 65_536

REQUIRED = 0x8000_0000
LC_SEGMENT_64 = 0x19
LC_LOAD_DYLIB, LC_ID_DYLIB = 0xC, 0xD
LC_LOAD_WEAK_DYLIB, LC_REEXPORT_DYLIB = 0x18 | REQUIRED, 0x1F | REQUIRED
LC_LAZY_LOAD_DYLIB, LC_LOAD_UPWARD_DYLIB = 0x20, 0x23 | REQUIRED
LC_RPATH, LC_CODE_SIGNATURE = 0x1C | REQUIRED, 0x1D
LC_DYLD_INFO, LC_DYLD_INFO_ONLY = 0x22, 0x22 | REQUIRED
LC_DYLD_EXPORTS_TRIE = 0x33 | REQUIRED
LC_BUILD_VERSION = 0x32
DEPENDENCIES = {
    LC_LOAD_DYLIB: "load",
    LC_LOAD_WEAK_DYLIB: "weak",
    LC_REEXPORT_DYLIB: "reexport",
    LC_LAZY_LOAD_DYLIB: "lazy",
    LC_LOAD_UPWARD_DYLIB: "upward",
}
MACOS = "macos"
PLATFORMS = {1: MACOS, 2: "ios", 6: "maccatalyst", 7: "ios-simulator"}
CPU_ARM64, CPU_X86_64 = 0x0100000C, 0x01000007
ARCHITECTURES = {CPU_ARM64: "arm64", CPU_X86_64: "x86_64"}
MH_EXECUTE, MH_DYLIB = 2, 6
MH_ALLOW_STACK_EXECUTION = 0x20000
VM_WRITE, VM_EXECUTE = 2, 4


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One LC_SEGMENT_64: offsets and sizes in bytes, protection as VM_* bits."""

    name: str
    file_offset: int
    file_size: int
    protection: int
    lowest_section: int | None  # file offset of the first section with contents


@dataclass(frozen=True, kw_only=True)
class Command:
    """One load command as it stands in the file."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class MachO:
    """What a library says to dyld."""

    architecture: str
    file_type: int
    flags: int
    commands: tuple[Command, ...]
    segments: tuple[Segment, ...]
    install_name: str | None
    dependencies: tuple[tuple[str, str], ...]  # (name, "load" | "weak" | ...)
    rpaths: tuple[str, ...]
    platform: str | None
    minimum_os: tuple[int, int] | None
    signature: tuple[int, int] | None  # (offset, size)
    exports: frozenset[str]  # without their leading underscore

    def segment(self, name: str) -> Segment | None:
        """Return the segment called ``name``."""
        return next((each for each in self.segments if each.name == name), None)


def is_macho(head: bytes) -> bool:
    """Say whether ``head`` starts a Mach-O file, thin or universal."""
    return head[:4] in {THIN, UNIVERSAL}


def read(data: bytes) -> MachO:
    """Read a thin file.

    Raises:
        Malformed: The bytes contradict themselves, or are no thin 64-bit Mach-O file.

    """
    if data[:4] == UNIVERSAL:
        msg = "it is a universal file, for several processors; a wheel is for one (lipo -thin)"
        raise Malformed(msg)
    if data[:4] != THIN:
        msg = "it has no magic number of a 64-bit Mach-O file"
        raise Malformed(msg)
    reader = BoundedReader(data=data, start=0, size=len(data))
    _, cpu, _, file_type, count, size, flags, _ = reader.unpack("8I", 0, "the header")
    commands = _commands(reader.sub(HEADER, size, "the load commands"), count)
    bodies = [(c.kind, reader.sub(c.offset, c.size, "a load command")) for c in commands]
    platform, minimum_os = _minimum(bodies)
    return MachO(
        architecture=ARCHITECTURES.get(cpu, f"cpu {cpu:#x}"),
        file_type=file_type,
        flags=flags,
        commands=commands,
        segments=tuple(_segment(body) for kind, body in bodies if kind == LC_SEGMENT_64),
        install_name=next((_string(body) for kind, body in bodies if kind == LC_ID_DYLIB), None),
        dependencies=tuple(
            (_string(body), DEPENDENCIES[kind]) for kind, body in bodies if kind in DEPENDENCIES
        ),
        rpaths=tuple(_string(body) for kind, body in bodies if kind == LC_RPATH),
        platform=platform,
        minimum_os=minimum_os,
        signature=_place(bodies, {LC_CODE_SIGNATURE: 8}),
        exports=_exports(reader, bodies),
    )


def _commands(area: BoundedReader, count: int) -> tuple[Command, ...]:
    if count > MAX_COMMANDS:
        msg = f"the header states {count} load commands"
        raise Malformed(msg)
    commands, offset = [], 0
    for index in range(count):
        kind, size = area.unpack("II", offset, f"load command {index}")
        if size < 8 or size % 4:
            msg = f"load command {index} has the impossible size {size}"
            raise Malformed(msg)
        area.sub(offset, size, f"load command {index}")
        commands.append(Command(kind=kind, offset=HEADER + offset, size=size))
        offset += size
    return tuple(commands)


def _minimum(
    bodies: list[tuple[int, BoundedReader]],
) -> tuple[str | None, tuple[int, int] | None]:
    platform, minimum_os = None, None
    for kind, body in bodies:
        # A zippered library names macOS and Mac Catalyst; macOS is what a wheel's tag is about.
        if kind == LC_BUILD_VERSION and platform != MACOS:
            number, version = body.unpack("II", 8, "LC_BUILD_VERSION")
            platform = PLATFORMS.get(number, f"platform {number}")
            minimum_os = (version >> 16, version >> 8 & 0xFF)
    return platform, minimum_os


def _place(
    bodies: list[tuple[int, BoundedReader]], wanted: dict[int, int]
) -> tuple[int, int] | None:
    """Return offset and size of the table that the last of some commands names."""
    found = None
    for kind, body in bodies:
        if kind in wanted:
            offset, size = body.unpack("II", wanted[kind], "the place of a table")
            found = (offset, size)
    return found


def _exports(reader: BoundedReader, bodies: list[tuple[int, BoundedReader]]) -> frozenset[str]:
    place = _place(bodies, {LC_DYLD_INFO: 40, LC_DYLD_INFO_ONLY: 40, LC_DYLD_EXPORTS_TRIE: 8})
    if place is None or place[1] == 0:
        return frozenset()
    names = export_trie(reader.sub(*place, "the exports trie"))
    return frozenset(name.removeprefix("_") for name in names)


def _string(body: BoundedReader) -> str:
    (offset,) = body.unpack("I", 8, "a string's offset")
    if not 8 < offset < body.size:
        msg = f"a load command's string starts at {offset}, outside of its {body.size} bytes"
        raise Malformed(msg)
    # The string may fill the command to its last byte, without a NUL.
    raw = body.take(offset, min(body.size - offset, MAX_STRING), "a load command's string")
    return readable(raw.split(b"\0", 1)[0])


def _segment(body: BoundedReader) -> Segment:
    name = body.take(8, 16, "a segment's name").rstrip(b"\0").decode("ascii", "backslashreplace")
    offset, size, _, protection, count, _ = body.unpack("2QiiII", 40, "a segment")
    body.sub(72, count * 80, f"the sections of segment {name}")
    lowest = None
    for at in range(72, 72 + count * 80, 80):
        length, position = body.unpack("QI", at + 40, "a section")
        if position and length:
            lowest = position if lowest is None else min(lowest, position)
    return Segment(
        name=name,
        file_offset=offset,
        file_size=size,
        protection=protection,
        lowest_section=lowest,
    )
