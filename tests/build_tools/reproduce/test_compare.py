"""Accounts of what differs between two wheels, down to line and section."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import pytest

from build_tools.reproduce.compare import CompareError, differences
from tests.build_tools.audit.makers import MadeWheel, dylib, elf, needs_cc

if TYPE_CHECKING:
    from pathlib import Path


def two(tmp_path: Path, first: MadeWheel, second: MadeWheel) -> list[str]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = differences(first.write(tmp_path / "a"), second.write(tmp_path / "b"))
    return [line for line in found if "/RECORD" not in line]


def holding(**files: bytes) -> MadeWheel:
    return MadeWheel(files={f"demo/{name.replace('_', '.')}": data for name, data in files.items()})


def test_identical(tmp_path: Path) -> None:
    assert two(tmp_path, MadeWheel(), MadeWheel()) == []


def test_lines_of_text(tmp_path: Path) -> None:
    found = two(tmp_path, holding(a_py=b"x = 1\ny = 2\n"), holding(a_py=b"x = 1\ny = 3\n"))
    assert found == ["demo/a.py: @@ -2 +2 @@", "demo/a.py: -y = 2", "demo/a.py: +y = 3"]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    numbers = "\n".join(map(str, range(500))).encode()
    found = two(tmp_path, holding(a_py=numbers), holding(a_py=numbers.replace(b"0", b"x")))
    assert len(found) == 21
    assert found[-1] == "demo/a.py: and more"


def test_bytes(tmp_path: Path) -> None:
    found = two(tmp_path, holding(a_bin=b"\xff\0\1"), holding(a_bin=b"\xff\0\2"))
    assert found == ["demo/a.bin: 1 of 3 bytes differ, the first at 0x2"]


def test_files_that_one_side_lacks(tmp_path: Path) -> None:
    found = two(tmp_path, holding(a_py=b"", b_py=b""), holding(b_py=b"", c_py=b""))
    assert found == ["demo/a.py: only in the first", "demo/c.py: only in the second"]


def test_fields_of_the_zip_file(tmp_path: Path) -> None:
    paths = []
    for number in (1, 2):
        path = tmp_path / f"{number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("demo/a.py")
            info.external_attr = (0o100644 if number == 1 else 0o100755) << 16
            info.date_time = (2020, 1, number, 0, 0, 0)
            archive.writestr(info, b"x" * 1000)
        paths.append(path)
    assert differences(*paths) == [
        "file name: 1.whl | 2.whl",
        "demo/a.py: zip field date_time: (2020, 1, 1, 0, 0, 0) | (2020, 1, 2, 0, 0, 0)",
        "demo/a.py: zip field external_attr: 0o100644 | 0o100755",
    ]


def test_another_compression_of_the_same_files(tmp_path: Path) -> None:
    paths = []
    for level in (1, 9):
        path = tmp_path / f"level{level}" / "demo.whl"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            text = "".join(map(str, range(5000)))
            archive.writestr(zipfile.ZipInfo("demo/a.py"), text, zipfile.ZIP_DEFLATED, level)
        paths.append(path)
    (line,) = differences(*paths)
    assert "the files are the same, the zip streams differ" in line


@needs_cc
def test_sections_of_elf_files(tmp_path: Path) -> None:
    wheels = [
        MadeWheel(
            files={"demo/d.so": elf(f'const char *demo(void) {{ return "{word}-number"; }}')},
        )
        for word in ("first", "other")
    ]
    found = two(tmp_path, *wheels)
    assert any(line.startswith("demo/d.so: section .rodata: 5 of ") for line in found), found
    assert "demo/d.so: section .rodata: only in the first: 'first-number'" in found
    assert all("section .rodata" in line or ".note.gnu.build-id" in line for line in found)


@needs_cc
def test_elf_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = bytearray(elf())
    struct.pack_into("<Q", broken, 40, len(broken) - 3)  # section headers: cut
    found = two(
        tmp_path,
        MadeWheel(files={"demo/d.so": elf()}),
        MadeWheel(files={"demo/d.so": bytes(broken)}),
    )
    assert len(found) >= 1
    assert all(line.startswith("demo/d.so: ") for line in found)


def test_segments_of_macho_files(tmp_path: Path) -> None:
    one = dylib(source="int demo(void) { return 1; }", rpaths=("/usr/lib/swift",))
    other = dylib(source="int demo(void) { return 2; }", rpaths=("/Users/x/lib/swift",))
    found = two(
        tmp_path,
        MadeWheel(files={"demo/d.dylib": one}),
        MadeWheel(files={"demo/d.dylib": other}),
    )
    text = "\n".join(found)
    assert "demo/d.dylib: segment __TEXT: " in text
    assert "only in the second: '/Users/x/lib/swift'" in text


def test_what_differs_steers_no_terminal(tmp_path: Path) -> None:
    found = two(tmp_path, holding(a_py=b"x"), holding(a_py=b"\x1b[31mx\r\x07"))
    assert "demo/a.py: +\\x1b[31mx" in found
    assert all(line.isprintable() for line in found)


def test_what_is_no_wheel(tmp_path: Path) -> None:
    good = MadeWheel().write(tmp_path)
    bad = tmp_path / "bad.whl"
    bad.write_bytes(b"text")
    for first, second in ((good, bad), (bad, good), (good, tmp_path), (good, tmp_path / "gone")):
        with pytest.raises(CompareError, match="cannot be compared"):
            differences(first, second)
