"""Hostile bytes: findings or a clean error, never a crash, a hang or a flood of memory."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_tools.audit.auditor import audit
from build_tools.audit.contents import build_paths
from build_tools.audit.findings import UnreadableWheelError
from build_tools.binaries import elf, macho, pe, signature
from build_tools.binaries.elf_symbols import DT_VERNEED, DT_VERNEEDNUM
from build_tools.binaries.exports import export_trie
from build_tools.binaries.reader import Malformed, whole
from tests.build_tools.audit.makers import (
    INFO,
    LINUX_TAG,
    MAC_TAG,
    ROOT,
    Recipe,
    dll,
    dylib,
    needs_cc,
    universal,
)
from tests.build_tools.audit.makers import elf as compiled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = needs_cc
QUICK = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = [0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63, 2**64 - 1]
EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(NUMBERS),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),  # near the start, where headers are
)


def damaged(data: bytes, edits: list[tuple[float, int, int, bool]], keep: float) -> bytes:
    """Write numbers over parts of ``data`` and cut it."""
    result = bytearray(data)
    for where, number, size, front in edits:
        reach = min(2048, len(result)) if front else len(result)
        at = int(where * (reach - size))
        result[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(result[: int(len(result) * keep)])


SEEDS: dict[str, Callable[[], bytes]] = {
    "elf": compiled,
    "dylib": lambda: dylib(rpaths=("/usr/lib/swift",)),
    "universal": lambda: universal(dylib(), dylib(architecture="x86_64")),
    "dll": dll,
}
READERS: dict[str, Callable[[bytes], object]] = {
    "elf": elf.read,
    "dylib": lambda data: [signature.verify(part) for part in macho.read(data)],
    "universal": lambda data: [signature.verify(part) for part in macho.read(data)],
    "dll": pe.read,
}


@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_libraries(kind: str) -> None:
    sound, read = SEEDS[kind](), READERS[kind]
    outcomes = set()

    @QUICK
    @given(
        edits=st.lists(EDIT, max_size=6),
        keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    )
    def attempt(edits: list[tuple[float, int, int, bool]], keep: float) -> None:
        outcome = outcome_of(read, damaged(sound, edits, keep))
        outcomes.add("malformed" if isinstance(outcome, Malformed) else "facts")

    attempt()
    # A damaged DLL is at worst no DLL; its reader may well refuse nothing.
    assert "facts" in outcomes
    assert "malformed" in outcomes or kind == "dll"


@QUICK
@given(st.binary(max_size=2048), st.sampled_from([b"", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ"]))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    for read in (*READERS.values(), build_paths):
        outcome_of(read, magic + data)


@QUICK
@given(edits=st.lists(EDIT, max_size=5), keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_damaged_wheels(
    edits: list[tuple[float, int, int, bool]], keep: float, tmp_path: Path
) -> None:
    path = tmp_path / f"demo-1.0-{LINUX_TAG}.whl"
    if not hasattr(test_damaged_wheels, "sound"):
        recipe = Recipe(tag=LINUX_TAG, files={"demo/demo.so": compiled()})
        test_damaged_wheels.sound = recipe.write(tmp_path).read_bytes()  # type: ignore[attr-defined]
    path.write_bytes(damaged(test_damaged_wheels.sound, edits, keep))  # type: ignore[attr-defined]
    with contextlib.suppress(UnreadableWheelError):
        audit(path)


TEXTS = st.one_of(
    st.binary(max_size=300),
    st.text(alphabet='[]{}":,=\n\r demo.:;NameVrsionTag-1023ä\x00\ud800', max_size=300).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
)


@QUICK
@given(metadata=TEXTS, wheel=TEXTS, record=TEXTS, points=TEXTS, sbom=TEXTS)
def test_any_metadata(
    metadata: bytes, wheel: bytes, record: bytes, points: bytes, sbom: bytes, tmp_path: Path
) -> None:
    files = {f"{INFO}/entry_points.txt": points, f"{INFO}/sboms/a.cdx.json": sbom}
    recipe = Recipe(files=files, metadata=metadata, wheel=wheel, record=record)
    assert audit(recipe.write(tmp_path)).failed


@QUICK
@given(name=st.text(min_size=1, max_size=60), mode=st.integers(0, 0xFFFF))
def test_any_entry(name: str, mode: int, tmp_path: Path) -> None:
    path = Recipe().write(tmp_path)
    info = zipfile.ZipInfo("x")
    info.filename = name.encode("utf-8", "replace").decode()
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "a") as archive:
        try:
            archive.writestr(info, b"x")
        except ValueError:
            return
    assert audit(path).findings


# ---------------------------------------------------------------- lies, one by one


def mach(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(dylib())
    change(data)
    return bytes(data)


def at(data: bytearray, kind: int) -> int:
    """Return the offset of a load command."""
    (part,) = macho.read(bytes(data))
    return next(each.offset for each in part.commands if each.kind == kind)


def put(kind: int, offset: int, *values: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(f"<{len(values)}I", data, at(data, kind) + offset, *values)


LIES = {
    "four thousand million commands": lambda d: struct.pack_into("<I", d, 16, 2**32 - 1),
    "commands larger than the file": lambda d: struct.pack_into("<I", d, 20, 2**31),
    "a command of no size": put(macho.LC_ID_DYLIB, 4, 0),
    "a name outside of its command": put(macho.LC_ID_DYLIB, 8, 5000),
    "a segment with more sections than bytes": put(macho.LC_SEGMENT_64, 64, 2**31),
    "a signature outside of the file": put(macho.LC_CODE_SIGNATURE, 8, 2**31, 64),
    "a signature of no size": put(macho.LC_CODE_SIGNATURE, 8, 0, 0),
    "an exports trie outside of the file": put(macho.LC_DYLD_INFO_ONLY, 40, 2**31, 64),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_mach_o(lie: str) -> None:
    outcome = outcome_of(READERS["dylib"], mach(LIES[lie]))
    assert isinstance(outcome, Malformed)
    assert str(outcome)


def test_universal_files_that_overlap() -> None:
    entry = struct.pack(">5I", macho.CPU_ARM64, 0, 0x4000, len(dylib()), 14)
    head = struct.pack(">II", 0xCAFEBABE, 40) + entry * 40
    with pytest.raises(Malformed, match="overlaps"):
        macho.read(head.ljust(0x4000, b"\0") + dylib())


def test_universal_files_within_themselves() -> None:
    data = (
        struct.pack(">7I", 0xCAFEBABE, 1, macho.CPU_ARM64, 0, 28, 100, 2) + b"\xca\xfe\xba\xbe" * 25
    )
    with pytest.raises(Malformed, match="no Mach-O magic"):
        macho.read(data)


def test_exports_trie_that_loops() -> None:
    # node 0: not terminal, one edge "a" to node 0
    with pytest.raises(Malformed, match="twice"):
        export_trie(whole(b"\0\x01a\0\0"))


def test_exports_trie_that_explodes() -> None:
    # A chain of nodes, each lengthening the name by 4000 letters.
    body = b""
    for _ in range(60):
        here = len(body)
        follow = here + 2 + 4001 + 3
        number = bytes([follow & 0x7F | 0x80, follow >> 7 & 0x7F | 0x80, follow >> 14 & 0x7F])
        body += b"\0\x01" + b"a" * 4000 + b"\0" + number
    with pytest.raises(Malformed, match="too long"):
        export_trie(whole(body + b"\0\0"))


def test_elf_versions_without_end() -> None:
    data = bytearray(compiled("#include <stdlib.h>\nint demo(void) { return abs(rand()); }"))
    facts = elf.read(bytes(data))
    assert facts.versions
    dynamic = next(each for each in facts.headers if each.kind == elf.PT_DYNAMIC)
    for place in range(dynamic.offset, dynamic.offset + dynamic.file_size, 16):
        tag, address = struct.unpack_from("<QQ", data, place)
        if tag == DT_VERNEEDNUM:
            struct.pack_into("<Q", data, place + 8, 2**64 - 1)
        if tag == DT_VERNEED:
            load = next(
                each
                for each in facts.headers
                if each.kind == elf.PT_LOAD and 0 <= address - each.address < each.file_size
            )
            need = load.offset + address - load.address
    # As many as a number can hold, each one byte after the one before.
    struct.pack_into("<I", data, need + 12, 1)
    outcome = outcome_of(elf.read, bytes(data))
    assert isinstance(outcome, (elf.Elf, Malformed))


def outcome_of(read: Callable[[bytes], object], data: bytes) -> object:
    """Return the facts, or the complaint."""
    try:
        return read(data)
    except Malformed as error:
        return error


def test_deep_nesting_in_text(tmp_path: Path) -> None:
    deep = b"[" * 200_000
    nested = b"Content-Type: message/rfc822\n\n" * 2000
    files = {f"{INFO}/sboms/a.cdx.json": deep, f"{INFO}/entry_points.txt": deep}
    recipe = Recipe(tag=MAC_TAG, files=files, metadata=nested, record=b'"' * 200_000)
    codes = {each.code for each in audit(recipe.write(tmp_path)).findings}
    assert {"sbom-invalid", "metadata-invalid", "record-invalid"} <= codes


def test_a_hundred_thousand_findings_are_thinned(tmp_path: Path) -> None:
    recipe = Recipe(record=b"\n".join(b"gone%d,," % n for n in range(100_000)))
    report = audit(recipe.write(tmp_path))
    assert sum(each.code == "record-absent" for each in report.findings) == 1000


@pytest.mark.parametrize("target", ["readers", "wheels"])
def test_coverage_guided_for_a_moment(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip(f"atheris has no build for Python {sys.version.split()[0]} on {sys.platform}")
    command = [
        sys.executable, "-m", "tests.build_tools.audit.fuzz",
        "--seconds", "4", "--target", target, "--corpus", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr, "libFuzzer ran to its end"
