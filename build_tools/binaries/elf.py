"""Read ELF files, of either class and byte order, as facts.

Layouts after the System V gABI and the GNU extensions that <elf.h> documents. Everything comes
from the program headers and the dynamic section, as the loader sees it; section headers, which a
stripped or hostile file need not have, only tell whether debugging information is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from build_tools.binaries.elf_symbols import Symbols, read_symbols
from build_tools.binaries.reader import Malformed, Window, whole

if TYPE_CHECKING:
    from build_tools.binaries.reader import Bytes

MAGIC = b"\x7fELF"
MACHINES = {
    3: "i686",
    20: "ppc",
    21: "ppc64le",
    22: "s390x",
    40: "armv7l",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PT_GNU_STACK, PT_GNU_RELRO = 0x6474E551, 0x6474E552
PF_X, PF_W = 1, 2
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_TEXTREL = 1, 5, 10, 14, 15, 22
DT_BIND_NOW, DT_RUNPATH, DT_FLAGS, DT_FLAGS_1 = 24, 29, 30, 0x6FFFFFFB
DF_TEXTREL, DF_BIND_NOW, DF_1_NOW, DF_1_PIE = 0x4, 0x8, 0x1, 0x08000000
MOST_DYNAMIC = 100_000
SHT_NULL = 0


@dataclass(frozen=True, kw_only=True)
class Header:
    """One program header: offsets, addresses and sizes in bytes, ``flags`` as PF_* bits."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, kw_only=True)
class Elf:
    """What an ELF file says to its loader."""

    machine: str
    bits: int
    order: Literal["<", ">"]
    file_type: int
    headers: tuple[Header, ...]
    interpreter: str | None
    dynamic: bool
    soname: str | None
    needed: tuple[str, ...]
    rpaths: tuple[str, ...]  # DT_RPATH and DT_RUNPATH, split at colons
    versions: frozenset[tuple[str, str]]  # (library, version) that must exist at run time
    exports: frozenset[str]
    imports: frozenset[str]
    text_relocations: bool
    binds_now: bool
    debug_sections: bool

    @property
    def executable_stack(self) -> bool:
        """Whether loading the file makes the stack executable (also when it does not say)."""
        marks = [each for each in self.headers if each.kind == PT_GNU_STACK]
        return not marks or any(each.flags & PF_X for each in marks)

    @property
    def relro(self) -> bool:
        """Whether relocated data becomes read-only after relocation."""
        return any(each.kind == PT_GNU_RELRO for each in self.headers)

    @property
    def writable_executable(self) -> bool:
        """Whether a loaded segment is writable and executable at once."""
        both = PF_X | PF_W
        return any(each.kind == PT_LOAD and each.flags & both == both for each in self.headers)


def is_elf(head: bytes) -> bool:
    """Say whether ``head`` starts an ELF file."""
    return head[:4] == MAGIC


def read(data: Bytes) -> Elf:
    """Read an ELF file.

    Raises:
        Malformed: The bytes contradict themselves.

    """
    bits, order = _identify(whole(data))
    file = whole(data, order)
    layout = "HHIQQQIHHHHHH" if bits == 64 else "HHIIIIIHHHHHH"
    fields = file.unpack(layout, 16, "the ELF header")
    kind, machine, _, _, table, sections, _, _, size, count, section_size, section_count, names = (
        fields
    )
    headers = _headers(file, bits, table, size, count)
    dynamic = _dynamic(file, bits, headers)
    loaded = Loaded(file=file, headers=headers)
    values = dict(dynamic)
    strings = _strings(loaded, values)
    symbols = read_symbols(loaded.at, values, strings, bits) if dynamic else Symbols()
    flags, flags_1 = values.get(DT_FLAGS, 0), values.get(DT_FLAGS_1, 0)
    soname = values.get(DT_SONAME)
    rpaths = [_string(strings, value) for tag, value in dynamic if tag in {DT_RPATH, DT_RUNPATH}]
    return Elf(
        machine=MACHINES.get(machine, f"machine {machine}"),
        bits=bits,
        order=order,
        file_type=kind,
        headers=headers,
        interpreter=_interpreter(file, headers),
        dynamic=bool(dynamic),
        soname=None if soname is None else _string(strings, soname),
        needed=tuple(_string(strings, value) for tag, value in dynamic if tag == DT_NEEDED),
        rpaths=tuple(path for each in rpaths for path in each.split(":")),
        versions=symbols.versions,
        exports=symbols.exports,
        imports=symbols.imports,
        text_relocations=DT_TEXTREL in values or bool(flags & DF_TEXTREL),
        binds_now=DT_BIND_NOW in values or bool(flags & DF_BIND_NOW or flags_1 & DF_1_NOW),
        debug_sections=_has_debug(file, bits, (sections, section_size, section_count, names)),
    )


def _identify(file: Window) -> tuple[Literal[32, 64], Literal["<", ">"]]:
    head = file.take(0, 16, "the ELF identification")
    if not is_elf(head):
        msg = "no ELF magic number at the start"
        raise Malformed(msg)
    if head[4] not in {1, 2} or head[5] not in {1, 2}:
        msg = f"impossible ELF class {head[4]} or byte order {head[5]}"
        raise Malformed(msg)
    return (64 if head[4] == 2 else 32), ("<" if head[5] == 1 else ">")


def _headers(file: Window, bits: int, table: int, size: int, count: int) -> tuple[Header, ...]:
    layout, least = ("IIQQQQQQ", 56) if bits == 64 else ("8I", 32)
    if count and size < least:
        msg = f"program headers of {size} bytes, {least} are needed"
        raise Malformed(msg)
    headers = []
    for index in range(count):
        raw = file.unpack(layout, table + index * size, f"program header {index}")
        if bits == 64:
            kind, flags, offset, address, _, on_file, in_memory, _ = raw
        else:
            kind, offset, address, _, on_file, in_memory, flags, _ = raw
        headers.append(
            Header(
                kind=kind,
                flags=flags,
                offset=offset,
                address=address,
                file_size=on_file,
                memory_size=in_memory,
            )
        )
    return tuple(headers)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Maps addresses to places in the file by the loaded segments."""

    file: Window
    headers: tuple[Header, ...]

    def at(self, address: int, what: str) -> Window:
        """Return the rest of the segment from ``address`` on."""
        for header in self.headers:
            inside = address - header.address
            if header.kind == PT_LOAD and 0 <= inside < header.file_size:
                return self.file.sub(header.offset + inside, header.file_size - inside, what)
        msg = f"{what} is at address {address:#x}, which no segment loads"
        raise Malformed(msg)


def _dynamic(file: Window, bits: int, headers: tuple[Header, ...]) -> list[tuple[int, int]]:
    found = next((each for each in headers if each.kind == PT_DYNAMIC), None)
    if found is None or found.file_size == 0:
        return []
    area = file.sub(found.offset, found.file_size, "the dynamic section")
    layout, size = ("QQ", 16) if bits == 64 else ("II", 8)
    entries = []
    for index in range(min(area.size // size, MOST_DYNAMIC)):
        tag, value = area.unpack(layout, index * size, "the dynamic section")
        if tag == 0:
            break
        entries.append((tag, value))
    return entries


def _strings(loaded: Loaded, values: dict[int, int]) -> Window | None:
    if DT_STRTAB not in values:
        return None
    table = loaded.at(values[DT_STRTAB], "the string table")
    return table.sub(0, min(values.get(DT_STRSZ, table.size), table.size), "the string table")


def _string(strings: Window | None, offset: int) -> str:
    if strings is None:
        msg = "the dynamic section names strings but has no string table"
        raise Malformed(msg)
    return strings.text(offset, "a string of the dynamic section")


def _interpreter(file: Window, headers: tuple[Header, ...]) -> str | None:
    found = next((each for each in headers if each.kind == PT_INTERP), None)
    if found is None:
        return None
    raw = file.sub(found.offset, found.file_size, "the interpreter's name")
    return raw.text(0, "the interpreter's name")


def _has_debug(file: Window, bits: int, where: tuple[int, int, int, int]) -> bool:
    table, size, count, names = where
    least = 64 if bits == 64 else 40
    # A lying section table is the business of debuggers, not of loaders: no finding, no debug.
    if not table or size < least or not 0 <= names < count:
        return False
    offset_at = 24 if bits == 64 else 16
    word = "QQ" if bits == 64 else "II"
    try:
        start, length = file.unpack(word, table + names * size + offset_at, "a section header")
        text = file.sub(start, length, "the section names")
        for index in range(count):
            (name,) = file.unpack("I", table + index * size, "a section header")
            if text.text(name, "a section's name").startswith((".debug_", ".zdebug_")):
                return True
    except Malformed:
        return False
    return False
