"""ELF libraries as facts, read by pyelftools as the loader reads them.

Everything comes from the program headers and the dynamic section. Section headers, which the loader
ignores and a hostile file may make up, only tell whether debugging information is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from elftools.common.utils import parse_cstring_from_stream, struct_parse
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from build_tools.binaries.reader import BoundedStream, Malformed, readable

MAGIC = b"\x7fELF"
MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
PF_X, PF_W = 1, 2
DF_TEXTREL, DF_BIND_NOW, DF_1_NOW = 0x4, 0x8, 0x1
MAX_VERSIONS = 10_000
SHN_UNDEFINED, SHN_ABSOLUTE = "SHN_UNDEF", "SHN_ABS"  # absolute: names of versions, no functions
VISIBLE = {"STV_DEFAULT", "STV_PROTECTED"}


@dataclass(frozen=True, kw_only=True)
class Elf:
    """What a library says to its loader; ``versions`` are (library, version) that it needs."""

    machine: str
    library: bool  # a shared object with a dynamic section
    soname: str | None
    needed: tuple[str, ...]
    rpaths: tuple[str, ...]  # DT_RPATH and DT_RUNPATH, split at colons
    versions: frozenset[tuple[str, str]]
    exports: frozenset[str]
    imports: frozenset[str]
    executable_stack: bool  # also when the file does not say
    writable_executable: bool  # a loaded segment
    text_relocations: bool
    relro: bool
    binds_now: bool
    debug_sections: bool


def is_elf(head: bytes) -> bool:
    """Say whether ``head`` starts an ELF file."""
    return head[:4] == MAGIC


def read(data: bytes) -> Elf:
    """Read an ELF file.

    Raises:
        Malformed: The bytes contradict themselves, or reading them does not end.

    """
    try:
        return _read(data)
    except Malformed:
        raise
    except Exception as error:
        # pyelftools promises no exception of its own for files that lie.
        msg = f"it cannot be read as ELF ({type(error).__name__}: {str(error)[:200]})"
        raise Malformed(msg) from error


def _read(data: bytes) -> Elf:
    stream = BoundedStream(data)
    file = ELFFile(stream)
    segments = list(file.iter_segments())
    found = [each for each in segments if isinstance(each, DynamicSegment)]
    dynamic = _Dynamic(file, stream, found[0]) if found else None
    values = dynamic.values if dynamic else {}
    exports, imports = dynamic.symbols() if dynamic else (frozenset(), frozenset())
    stack = [each for each in segments if each["p_type"] == "PT_GNU_STACK"]
    loaded = [each["p_flags"] for each in segments if each["p_type"] == "PT_LOAD"]
    flags, flags_1 = values.get("DT_FLAGS", 0), values.get("DT_FLAGS_1", 0)
    return Elf(
        machine=MACHINES.get(file["e_machine"], str(file["e_machine"])),
        library=file["e_type"] == "ET_DYN" and dynamic is not None,
        soname=next(iter(dynamic.texts("DT_SONAME")), None) if dynamic else None,
        needed=tuple(dynamic.texts("DT_NEEDED")) if dynamic else (),
        rpaths=tuple(
            path
            for tag in ("DT_RPATH", "DT_RUNPATH")
            for text in (dynamic.texts(tag) if dynamic else ())
            for path in text.split(":")
        ),
        versions=frozenset(dynamic.versions()) if dynamic else frozenset(),
        exports=exports,
        imports=imports,
        executable_stack=not stack or any(each["p_flags"] & PF_X for each in stack),
        writable_executable=any(each & PF_X and each & PF_W for each in loaded),
        text_relocations="DT_TEXTREL" in values or bool(flags & DF_TEXTREL),
        relro=any(each["p_type"] == "PT_GNU_RELRO" for each in segments),
        binds_now="DT_BIND_NOW" in values or bool(flags & DF_BIND_NOW or flags_1 & DF_1_NOW),
        debug_sections=any(
            each.name.startswith((".debug_", ".zdebug_")) for each in file.iter_sections()
        ),
    )


class _Dynamic:
    """The dynamic section, by the addresses that it gives."""

    def __init__(self, file: ELFFile, stream: BoundedStream, segment: DynamicSegment) -> None:
        self._file, self._stream, self._segment = file, stream, segment
        self._tags = [(tag.entry.d_tag, tag.entry.d_val) for tag in segment.iter_tags()]
        self.values: dict[str, int] = dict(self._tags)
        self._strings = self._at("DT_STRTAB")

    def texts(self, tag: str) -> list[str]:
        """Return the strings that tags of one kind name."""
        return [self._text(value) for name, value in self._tags if name == tag]

    def symbols(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names that the library exports, and those that it imports."""
        exports, imports = set(), set()
        table = self._at("DT_SYMTAB")
        layout = self._file.structs.Elf_Sym
        size = layout.sizeof()
        # Entry 0 is the null symbol.
        for index in range(1, self._segment.num_symbols()):
            symbol = struct_parse(layout, self._stream, table + index * size)
            if symbol.st_info.bind == "STB_LOCAL" or not symbol.st_name:
                continue
            if symbol.st_shndx == SHN_UNDEFINED:
                imports.add(self._text(symbol.st_name))
            elif symbol.st_shndx != SHN_ABSOLUTE and symbol.st_other.visibility in VISIBLE:
                exports.add(self._text(symbol.st_name))
        return frozenset(exports), frozenset(imports)

    def versions(self) -> Iterator[tuple[str, str]]:
        """Yield (library, version) of every version that must exist at run time."""
        if "DT_VERNEED" not in self.values:
            return
        at, steps = self._at("DT_VERNEED"), 0
        for _ in range(min(self.values.get("DT_VERNEEDNUM", 0), MAX_VERSIONS)):
            need: Any = struct_parse(self._file.structs.Elf_Verneed, self._stream, at)
            library, inner = self._text(need.vn_file), at + need.vn_aux
            for _ in range(need.vn_cnt):
                steps += 1
                if steps > MAX_VERSIONS:
                    msg = "the version table loops"
                    raise Malformed(msg)
                version: Any = struct_parse(self._file.structs.Elf_Vernaux, self._stream, inner)
                yield library, self._text(version.vna_name)
                inner += version.vna_next
            if not need.vn_next:
                return
            at += need.vn_next

    def _at(self, tag: str) -> int:
        """Return where in the file the table lies whose address ``tag`` gives."""
        offset = next(self._file.address_offsets(self.values[tag]), None)
        if offset is None:
            msg = f"{tag} gives an address that no segment loads"
            raise Malformed(msg)
        return offset

    def _text(self, offset: int) -> str:
        raw = parse_cstring_from_stream(self._stream, self._strings + offset)
        if raw is None:
            msg = "a string has no end"
            raise Malformed(msg)
        return readable(raw)
