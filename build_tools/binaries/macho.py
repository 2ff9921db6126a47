"""Read Mach-O files: thin or universal, as facts.

Layouts after Apple's <mach-o/loader.h>, <mach-o/fat.h> and <mach-o/nlist.h>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from build_tools.binaries.exports import LONGEST_NAME, MOST_NAME_BYTES, export_trie
from build_tools.binaries.reader import LONGEST_STRING, Malformed, Window, readable, whole

if TYPE_CHECKING:
    from build_tools.binaries.reader import Bytes

FAT_MAGIC, FAT_MAGIC_64 = 0xCAFEBABE, 0xCAFEBABF
THIN: dict[bytes, tuple[Literal["<", ">"], bool]] = {
    b"\xcf\xfa\xed\xfe": ("<", True),
    b"\xce\xfa\xed\xfe": ("<", False),
    b"\xfe\xed\xfa\xcf": (">", True),
    b"\xfe\xed\xfa\xce": (">", False),
}
MOST_SLICES = 64
MOST_COMMANDS = 65_536
MOST_SYMBOLS = 1_000_000

REQUIRED = 0x8000_0000
LC_SEGMENT, LC_SYMTAB, LC_DYSYMTAB, LC_SEGMENT_64 = 0x1, 0x2, 0xB, 0x19
LC_LOAD_DYLIB, LC_ID_DYLIB = 0xC, 0xD
LC_LOAD_WEAK_DYLIB, LC_REEXPORT_DYLIB = 0x18 | REQUIRED, 0x1F | REQUIRED
LC_LAZY_LOAD_DYLIB, LC_LOAD_UPWARD_DYLIB = 0x20, 0x23 | REQUIRED
LC_RPATH, LC_CODE_SIGNATURE, LC_UUID = 0x1C | REQUIRED, 0x1D, 0x1B
LC_DYLD_INFO, LC_DYLD_INFO_ONLY = 0x22, 0x22 | REQUIRED
LC_DYLD_EXPORTS_TRIE = 0x33 | REQUIRED
LC_VERSION_MIN = {0x24: 1, 0x25: 2, 0x2F: 3, 0x30: 4}  # command -> platform number
LC_BUILD_VERSION = 0x32
DEPENDENCIES = {
    LC_LOAD_DYLIB: "load",
    LC_LOAD_WEAK_DYLIB: "weak",
    LC_REEXPORT_DYLIB: "reexport",
    LC_LAZY_LOAD_DYLIB: "lazy",
    LC_LOAD_UPWARD_DYLIB: "upward",
}
PLATFORMS = {1: "macos", 2: "ios", 3: "tvos", 4: "watchos", 6: "maccatalyst", 7: "ios-simulator"}
CPU_ARM64, CPU_X86_64, CPU_X86, CPU_PPC, CPU_PPC64 = 0x0100000C, 0x01000007, 7, 18, 0x01000012
ARCHITECTURES = {
    CPU_ARM64: "arm64",
    CPU_X86_64: "x86_64",
    CPU_X86: "i386",
    CPU_PPC: "ppc",
    CPU_PPC64: "ppc64",
}
MH_OBJECT, MH_EXECUTE, MH_DYLIB, MH_BUNDLE = 1, 2, 6, 8
MH_ALLOW_STACK_EXECUTION = 0x20000
VM_WRITE, VM_EXECUTE = 2, 4


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One LC_SEGMENT: addresses and sizes in bytes, protections as VM_* bits."""

    name: str
    address: int
    memory_size: int
    file_offset: int
    file_size: int
    maximum_protection: int
    initial_protection: int
    lowest_section: int | None  # file offset of the first section with contents


@dataclass(frozen=True, kw_only=True)
class Command:
    """One load command as it stands in the file; ``offset`` counts from the start of the slice."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one architecture of a Mach-O file says."""

    window: Window
    is_64: bool
    architecture: str
    file_type: int
    flags: int
    header_size: int
    commands: tuple[Command, ...]
    segments: tuple[Segment, ...]
    install_name: str | None
    dependencies: tuple[tuple[str, str], ...]  # (name, "load" | "weak" | ...)
    rpaths: tuple[str, ...]
    platform: str | None
    minimum_os: tuple[int, int] | None
    signature: tuple[int, int] | None  # (offset, size)
    exports: frozenset[str]

    def segment(self, name: str) -> Segment | None:
        """Return the segment called ``name``."""
        return next((each for each in self.segments if each.name == name), None)


def is_macho(head: bytes) -> bool:
    """Say whether ``head`` (8 bytes or more) starts a Mach-O file.

    Java class files share the universal magic; their next field is a version of at least 45.
    """
    if head[:4] in THIN:
        return True
    count = int.from_bytes(head[4:8], "big")
    return (
        int.from_bytes(head[:4], "big") in {FAT_MAGIC, FAT_MAGIC_64}
        and len(head) >= 8
        and 0 < count < 45
    )


def read(data: Bytes) -> tuple[Slice, ...]:
    """Read every slice of a thin or universal file.

    Raises:
        Malformed: The bytes contradict themselves.

    """
    return tuple(_read_slice(window) for window in slices(data))


def slices(data: Bytes) -> list[Window]:
    """Return the window of each architecture; one for a thin file."""
    file = whole(data, ">")
    (magic,) = file.unpack("I", 0, "the magic number")
    if magic not in {FAT_MAGIC, FAT_MAGIC_64}:
        return [file]
    (count,) = file.unpack("I", 4, "the number of architectures")
    if not 0 < count <= MOST_SLICES:
        msg = f"the universal header states {count} architectures"
        raise Malformed(msg)
    layout, entry = ("IIQQII", 32) if magic == FAT_MAGIC_64 else ("IIIII", 20)
    windows = []
    end = 8 + count * entry
    for index in range(count):
        fields = file.unpack(layout, 8 + index * entry, f"architecture {index}")
        windows.append(file.sub(fields[2], fields[3], f"the slice of architecture {index}"))
    for window in sorted(windows, key=lambda each: each.start):
        if window.start < end:
            msg = f"the slice at offset {window.start:#x} overlaps what comes before it"
            raise Malformed(msg)
        end = window.start + window.size
    return windows


def _read_slice(raw: Window) -> Slice:
    try:
        order, is_64 = THIN[raw.take(0, 4, "the magic number")]
    except KeyError:
        msg = f"no Mach-O magic number at offset {raw.start:#x}"
        raise Malformed(msg) from None
    window = raw.sub(0, raw.size, "the slice", order)
    _, cpu, _, file_type, count, size, flags = window.unpack("7I", 0, "the header")
    header = 32 if is_64 else 28
    commands = _commands(window.sub(header, size, "the load commands"), header, count)
    facts = _Facts(window=window, is_64=is_64)
    for command in commands:
        facts.add(command)
    return Slice(
        window=window,
        is_64=is_64,
        architecture=ARCHITECTURES.get(cpu, f"cpu {cpu:#x}"),
        file_type=file_type,
        flags=flags,
        header_size=header,
        commands=commands,
        segments=tuple(facts.segments),
        install_name=facts.install_name,
        dependencies=tuple(facts.dependencies),
        rpaths=tuple(facts.rpaths),
        platform=facts.platform,
        minimum_os=facts.minimum_os,
        signature=facts.signature,
        exports=facts.exports(),
    )


def _commands(area: Window, header: int, count: int) -> tuple[Command, ...]:
    if count > MOST_COMMANDS:
        msg = f"the header states {count} load commands"
        raise Malformed(msg)
    commands, offset = [], 0
    for index in range(count):
        kind, size = area.unpack("II", offset, f"load command {index}")
        if size < 8 or size % 4:
            msg = f"load command {index} has the impossible size {size}"
            raise Malformed(msg)
        area.sub(offset, size, f"load command {index}")
        commands.append(Command(kind=kind, offset=header + offset, size=size))
        offset += size
    return tuple(commands)


class _Facts:
    """Collects what the load commands of one slice say."""

    def __init__(self, *, window: Window, is_64: bool) -> None:
        self.window = window
        self.is_64 = is_64
        self.segments: list[Segment] = []
        self.install_name: str | None = None
        self.dependencies: list[tuple[str, str]] = []
        self.rpaths: list[str] = []
        self.platform: str | None = None
        self.minimum_os: tuple[int, int] | None = None
        self.signature: tuple[int, int] | None = None
        self._trie: tuple[int, int] | None = None
        self._symtab: tuple[int, int, int, int] | None = None

    def add(self, command: Command) -> None:
        """Take in one load command."""
        kind = command.kind
        body = self.window.sub(command.offset, command.size, "a load command")
        if kind in DEPENDENCIES:
            self.dependencies.append((_string(body), DEPENDENCIES[kind]))
        elif kind == LC_ID_DYLIB:
            self.install_name = _string(body)
        elif kind == LC_RPATH:
            self.rpaths.append(_string(body))
        elif kind in {LC_SEGMENT, LC_SEGMENT_64}:
            self.segments.append(_segment(body, is_64=kind == LC_SEGMENT_64))
        elif kind == LC_BUILD_VERSION:
            number, version = body.unpack("II", 8, "LC_BUILD_VERSION")
            self._minimum(number, version)
        elif kind in LC_VERSION_MIN:
            self._minimum(LC_VERSION_MIN[kind], body.unpack("I", 8, "the minimum OS")[0])
        elif kind == LC_CODE_SIGNATURE:
            offset, size = body.unpack("II", 8, "LC_CODE_SIGNATURE")
            self.signature = (offset, size)
        else:
            self._add_tables(kind, body)

    def _add_tables(self, kind: int, body: Window) -> None:
        if kind in {LC_DYLD_INFO, LC_DYLD_INFO_ONLY}:
            offset, size = body.unpack("II", 40, "LC_DYLD_INFO")
            self._trie = (offset, size)
        elif kind == LC_DYLD_EXPORTS_TRIE:
            offset, size = body.unpack("II", 8, "LC_DYLD_EXPORTS_TRIE")
            self._trie = (offset, size)
        elif kind == LC_SYMTAB:
            symbols, count, strings, size = body.unpack("4I", 8, "LC_SYMTAB")
            self._symtab = (symbols, count, strings, size)

    def _minimum(self, number: int, version: int) -> None:
        # A zippered library names macOS and Mac Catalyst; macOS is what a wheel's tag is about.
        if self.platform != "macos":
            self.platform = PLATFORMS.get(number, f"platform {number}")
            self.minimum_os = (version >> 16, version >> 8 & 0xFF)

    def exports(self) -> frozenset[str]:
        """Return exported names, each without its leading underscore."""
        if self._trie is not None and self._trie[1] > 0:
            names = export_trie(self.window.sub(*self._trie, "the exports trie"))
        elif self._symtab is not None:
            names = self._symtab_exports(*self._symtab)
        else:
            names = set()
        return frozenset(name.removeprefix("_") for name in names)

    def _symtab_exports(self, symbols: int, count: int, strings: int, size: int) -> set[str]:
        if count > MOST_SYMBOLS:
            msg = f"the symbol table states {count} symbols"
            raise Malformed(msg)
        entry = 16 if self.is_64 else 12
        table = self.window.sub(symbols, count * entry, "the symbol table")
        text = self.window.sub(strings, size, "the string table")
        names: set[str] = set()
        total = 0
        for index in range(count):
            name, kind = table.unpack("IB", index * entry, "a symbol")
            # N_STAB and N_PEXT clear, N_EXT set, defined in a section
            if kind & 0xF0 == 0 and kind & 0x01 and kind & 0x0E == 0x0E:
                raw = text.terminated(name, "a symbol's name", LONGEST_NAME)
                total += len(raw)
                if total > MOST_NAME_BYTES:
                    msg = "the symbol table spells more text than any library has"
                    raise Malformed(msg)
                names.add(readable(raw))
        return names


def _string(body: Window) -> str:
    (offset,) = body.unpack("I", 8, "a string's offset")
    if not 8 < offset < body.size:
        msg = f"a load command's string starts at {offset}, outside of its {body.size} bytes"
        raise Malformed(msg)
    # The string may fill the command to its last byte, without a NUL.
    raw = body.take(offset, min(body.size - offset, LONGEST_STRING), "a load command's string")
    return readable(raw.split(b"\0", 1)[0])


def _segment(body: Window, *, is_64: bool) -> Segment:
    name = body.take(8, 16, "a segment's name").rstrip(b"\0").decode("ascii", "backslashreplace")
    layout, start, section, offset_at, size_at = (
        ("4QiiII", 72, 80, 48, 40) if is_64 else ("4IiiII", 56, 68, 40, 36)
    )
    address, memory, offset, size, highest, initial, count, _ = body.unpack(layout, 24, "a segment")
    body.sub(start, count * section, f"the sections of segment {name}")
    lowest = None
    for index in range(count):
        at = start + index * section
        (position,) = body.unpack("I", at + offset_at, "a section")
        (length,) = body.unpack("Q" if is_64 else "I", at + size_at, "a section")
        if position and length:
            lowest = position if lowest is None else min(lowest, position)
    return Segment(
        name=name,
        address=address,
        memory_size=memory,
        file_offset=offset,
        file_size=size,
        maximum_protection=highest,
        initial_protection=initial,
        lowest_section=lowest,
    )
