"""Hostile bytes: findings or a clean error, never a crash, a hang or a flood of memory."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import struct
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_tools.audit.auditor import audit
from build_tools.binaries import elf, macho
from build_tools.binaries.build_paths import build_paths
from build_tools.binaries.exports import export_trie
from build_tools.binaries.reader import BoundedReader, Malformed
from build_tools.binaries.relocate.adhoc import sign
from build_tools.support.errors import RelocationError
from build_tools.wheel.archives import UnreadableError
from tests.build_tools.audit.makers import (
    INFO,
    ROOT,
    MadeWheel,
    dylib,
    linux,
    needs_cc,
    sdist,
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
}


def signed(data: bytes) -> object:
    """Read a Mach-O file and sign it again, as the audit does."""
    facts = macho.read(data)
    with contextlib.suppress(RelocationError):
        return sign(data, identifier="libdemo.dylib")
    return facts


READERS: dict[str, Callable[[bytes], object]] = {
    "elf": elf.read,
    "dylib": signed,
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
    assert outcomes == {"facts", "malformed"}


@QUICK
@given(st.binary(max_size=2048), st.sampled_from([b"", b"\x7fELF", b"\xcf\xfa\xed\xfe"]))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    for read in (*READERS.values(), build_paths):
        outcome_of(read, magic + data)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_damaged_archives(kind: str, tmp_path: Path) -> None:
    path = linux().write(tmp_path) if kind == "wheel" else sdist(tmp_path)
    sound = path.read_bytes()

    @settings(QUICK, max_examples=150)
    @given(edits=st.lists(EDIT, max_size=5), keep=st.one_of(st.just(1.0), st.floats(0, 1)))
    def attempt(edits: list[tuple[float, int, int, bool]], keep: float) -> None:
        data = damaged(sound, edits, keep)
        path.write_bytes(data)
        with contextlib.suppress(UnreadableError):
            assert audit(path).findings or data == sound

    attempt()


TEXTS = st.one_of(
    st.binary(max_size=300),
    st.text(alphabet='[]{}":,=\n\r demo.:;NameVrsionTag-1023ä\x00\ud800', max_size=300).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
)


@settings(QUICK, max_examples=150)
@given(metadata=TEXTS, wheel=TEXTS, record=TEXTS, points=TEXTS, sbom=TEXTS, manifest=TEXTS)
def test_any_text(
    metadata: bytes,
    wheel: bytes,
    record: bytes,
    points: bytes,
    sbom: bytes,
    manifest: bytes,
    tmp_path: Path,
) -> None:
    files: dict[str, bytes | None] = {
        f"{INFO}/METADATA": metadata,
        f"{INFO}/WHEEL": wheel,
        f"{INFO}/entry_points.txt": points,
        f"{INFO}/sboms/qwen-mfa.cdx.json": sbom,
        "qwen_mfa/_native/manifest.json": manifest,
        "qwen_mfa/_native/shaders/index.json": manifest,
        "qwen_mfa/native/abi.cdef": points,
    }
    assert audit(linux(files=files, record=record).write(tmp_path)).findings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@settings(QUICK, max_examples=150)
@given(facts=st.dictionaries(st.sampled_from(["files", "library", "sources", "package"]), JSON))
def test_any_manifest(facts: dict[str, object], tmp_path: Path) -> None:
    audit(linux(facts=facts).write(tmp_path))


@settings(QUICK, max_examples=150)
@given(name=st.text(min_size=1, max_size=60), mode=st.integers(0, 0xFFFF))
def test_any_entry(name: str, mode: int, tmp_path: Path) -> None:
    path = MadeWheel().write(tmp_path)
    info = zipfile.ZipInfo("x")
    info.filename = name.encode("utf-8", "replace").decode()
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "a") as archive:
        try:
            archive.writestr(info, b"x")
        except ValueError:
            return
    with contextlib.suppress(UnreadableError):
        assert audit(path).findings


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = MadeWheel().write(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            with archive.open(f"zeros{number}", "w", force_zip64=True) as target:
                for _ in range(70):
                    target.write(bytes(1024 * 1024))
    with pytest.raises(UnreadableError, match="unpacked it would have"):
        audit(path)


def test_a_bomb_in_a_source_distribution_is_not_unpacked(tmp_path: Path) -> None:
    path = sdist(tmp_path)
    with gzip.open(path, "wb", compresslevel=1) as target:
        for _ in range(130):
            target.write(bytes(1024 * 1024))
    with pytest.raises(UnreadableError, match="unpacked it has more than"):
        audit(path)


# ---------------------------------------------------------------- lies, one by one


def mach(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(dylib())
    change(data)
    return bytes(data)


def at(data: bytearray, kind: int) -> int:
    """Return the offset of a load command."""
    commands = macho.read(bytes(data)).commands
    return next(each.offset for each in commands if each.kind == kind)


def put(kind: int, offset: int, *values: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(f"<{len(values)}I", data, at(data, kind) + offset, *values)


LIES = {
    "four thousand million commands": lambda d: struct.pack_into("<I", d, 16, 2**32 - 1),
    "commands larger than the file": lambda d: struct.pack_into("<I", d, 20, 2**31),
    "a command of no size": put(macho.LC_ID_DYLIB, 4, 0),
    "a name outside of its command": put(macho.LC_ID_DYLIB, 8, 5000),
    "a segment with more sections than bytes": put(macho.LC_SEGMENT_64, 64, 2**31),
    "an exports trie outside of the file": put(macho.LC_DYLD_INFO_ONLY, 40, 2**31, 64),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_mach_o(lie: str) -> None:
    outcome = outcome_of(READERS["dylib"], mach(LIES[lie]))
    assert isinstance(outcome, Malformed)
    assert str(outcome)


def trie(data: bytes) -> BoundedReader:
    return BoundedReader(data=data, start=0, size=len(data))


def test_exports_trie_that_loops() -> None:
    # node 0: not terminal, one edge "a" to node 0
    with pytest.raises(Malformed, match="twice"):
        export_trie(trie(b"\0\x01a\0\0"))


def test_exports_trie_that_explodes() -> None:
    # A chain of nodes, each lengthening the name by 4000 letters.
    body = b""
    for _ in range(60):
        here = len(body)
        follow = here + 2 + 4001 + 3
        number = bytes([follow & 0x7F | 0x80, follow >> 7 & 0x7F | 0x80, follow >> 14 & 0x7F])
        body += b"\0\x01" + b"a" * 4000 + b"\0" + number
    with pytest.raises(Malformed, match="too long"):
        export_trie(trie(body + b"\0\0"))


def tags(data: bytes) -> dict[int, int]:
    """Return where in the file the value of each dynamic tag lies."""
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    (place,) = [(offset, length) for kind, _, offset, _, _, length in headers if kind == 2]
    found: dict[int, int] = {}
    for at in range(place[0], place[0] + place[1], 16):
        found.setdefault(struct.unpack_from("<Q", data, at)[0], at + 8)
    return found


def test_elf_versions_without_end() -> None:
    data = bytearray(compiled("#include <stdlib.h>\nint demo(void) { return abs(rand()); }"))
    assert elf.read(bytes(data)).versions
    places = tags(bytes(data))
    struct.pack_into("<Q", data, places[0x6FFFFFFF], 2**64 - 1)  # DT_VERNEEDNUM
    # The first segment is loaded where it lies; as many as a number holds, each in the one before.
    (need,) = struct.unpack_from("<Q", data, places[0x6FFFFFFE])
    struct.pack_into("<I", data, need + 12, 1)
    started = time.monotonic()
    assert isinstance(outcome_of(elf.read, bytes(data)), (elf.Elf, Malformed))
    assert time.monotonic() - started < 10


def test_elf_names_without_end() -> None:
    """A symbol table whose names are all one endless string costs no more than its budget."""
    functions = "".join(f"int f{number}(void) {{ return {number}; }}\n" for number in range(3000))
    data = bytearray(compiled(functions) + b"x" * 3_000_000)
    places = tags(bytes(data))
    # The string table: where the padding is, by a segment that loads the whole file at address 0.
    struct.pack_into("<Q", data, places[5], 2**40)
    table, size = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 54)[0]
    (symbols,) = struct.unpack_from("<Q", data, places[6])
    for index in range(1, 3000):
        struct.pack_into("<I", data, symbols + 24 * index, 1)
    last = table + size * (struct.unpack_from("<H", data, 56)[0] - 1)
    struct.pack_into(
        "<IIQQQQQQ", data, last, 1, 4, len(data) - 3_000_000, 2**40, 0, *[3_000_000] * 2, 1
    )
    started = time.monotonic()
    assert isinstance(outcome_of(elf.read, bytes(data)), Malformed)
    assert time.monotonic() - started < 10


def outcome_of(read: Callable[[bytes], object], data: bytes) -> object:
    """Return the facts, or the complaint."""
    try:
        return read(data)
    except Malformed as error:
        return error


def test_deep_nesting_in_text(tmp_path: Path) -> None:
    deep = b"[" * 200_000
    files: dict[str, bytes | None] = {
        f"{INFO}/sboms/qwen-mfa.cdx.json": deep,
        f"{INFO}/entry_points.txt": deep,
        f"{INFO}/METADATA": b"Content-Type: message/rfc822\n\n" * 2000,
        "qwen_mfa/native/abi.cdef": b"{/*" * 2_000_000,
    }
    found = audit(linux(files=files, record=b'"' * 200_000).write(tmp_path)).findings
    assert {"sbom", "metadata", "record", "entry-point"} <= {each.code for each in found}


def test_a_hundred_thousand_findings_are_thinned(tmp_path: Path) -> None:
    wheel = MadeWheel(record=b"\n".join(b"gone%d,," % n for n in range(100_000)))
    assert len(audit(wheel.write(tmp_path)).findings) == 200


@pytest.mark.parametrize("target", ["readers", "wheels"])
def test_coverage_guided_for_a_moment(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip(f"atheris has no build for Python {sys.version.split()[0]} on {sys.platform}")
    command = [
        sys.executable, "-m", "tests.build_tools.audit.fuzz",
        "--seconds", "2", "--target", target, "--corpus", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr, "libFuzzer ran to its end"
