"""The audit command: exit status, table, JSON, and files that are no wheels, or not ours."""

from __future__ import annotations

import json
import os
import zipfile
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.audit.auditor import audit, require
from build_tools.audit.findings import AuditError
from build_tools.source.header import declared
from build_tools.wheel.archives import UnreadableError
from tests.build_tools.audit.makers import INFO, TOP, MadeWheel

if TYPE_CHECKING:
    from pathlib import Path

PURE = f"{TOP}-py3-none-any.whl"


def test_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(MadeWheel().write(tmp_path))]) == 0
    assert capsys.readouterr().out == f"{PURE}: passed\n"


def test_findings_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = MadeWheel(files={"qwen_mfa/py.typed": None}).write(tmp_path)
    assert main(["audit", str(wheel)]) == 1
    out = capsys.readouterr().out
    for word in ("code", "file", "what", "how to mend", "file-missing", "1 finding"):
        assert word in out


@pytest.mark.parametrize("columns", [60, 200])
def test_the_table_is_as_wide_as_columns_says(
    columns: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    wheel = MadeWheel(files={"qwen_mfa/py.typed": None}).write(tmp_path)
    assert main(["audit", str(wheel)]) == 1
    width = max(map(len, capsys.readouterr().out.splitlines()))
    assert width <= columns
    assert (width > 100) == (columns == 200)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    good, bad = MadeWheel().write(tmp_path), MadeWheel(record=b"").write(tmp_path / "bad")
    gone = tmp_path / f"{TOP}-py3-none-win32.whl"
    assert main(["audit", "--json", str(good), str(bad), str(gone)]) == 2
    first, second, third = json.loads(capsys.readouterr().out)
    assert first["passed"] is True
    assert second["passed"] is False
    assert {"code", "file", "what", "mend"} == set(second["findings"][0])
    assert "cannot be read" in third["error"]


UNREADABLE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"not a wheel\n" * 100,
    "huge directory": lambda _: b"PK\x05\x06" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6),
    "wrong directory": lambda data: data[:-10] + b"\xff\xff\xff" + data[-7:],
    "encrypted": lambda data: data[:6] + b"\x01" + data[7:].replace(
        b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\x01", 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", UNREADABLE)
def test_unreadable(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = MadeWheel().write(tmp_path)
    wheel.write_bytes(UNREADABLE[damage](wheel.read_bytes()))  # type: ignore[no-untyped-call]
    assert main(["audit", str(wheel)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {PURE} cannot be read: ")


def test_other_things_than_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, pipe = tmp_path / PURE, tmp_path / f"{TOP}.tar.gz"
    folder.mkdir()
    os.mkfifo(pipe)
    assert main(["audit", str(folder), str(pipe)]) == 2
    err = capsys.readouterr().err
    assert "is a folder" in err
    assert "is no regular file" in err


def test_a_sparse_giant(tmp_path: Path) -> None:
    path = tmp_path / PURE
    with path.open("wb") as stream:
        stream.truncate(200 * 1024**3)
    with pytest.raises(UnreadableError, match="more than any file of ours"):
        audit(path)


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("numpy-2.0-cp313-cp313-manylinux_2_28_x86_64.whl", "auditwheel show"),
        ("numpy-2.0-cp313-cp313-musllinux_1_2_x86_64.whl", "auditwheel show"),
        ("numpy-2.0-cp313-cp313-macosx_14_0_arm64.whl", "delocate-listdeps --all"),
        ("numpy-2.0-cp313-cp313-win_amd64.whl", "delvewheel show"),
        ("attrs-2.0-py3-none-any.whl", "check-wheel-contents"),
        ("numpy-2.0.tar.gz", "twine check --strict"),
        ("photos.zip", "check-wheel-contents"),
        ("qwen_mfa-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", "auditwheel show"),
    ],
)
def test_a_foreign_file_is_sent_to_its_tool(
    name: str, tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"")
    assert main(["audit", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert f"error: {name} is not a file of this project; for others there is " in err
    assert tool in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "name", [f"{TOP}\x1b[31m-py3-none-any.whl", f"{TOP}-py3-none-any.whl\nforged: passed"]
)
def test_the_file_s_own_name_steers_no_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = MadeWheel().write(tmp_path).rename(tmp_path / name)
    assert main(["audit", str(wheel)]) == 2
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", ["qwen_mfa/\x1b[31mred.py", "qwen_mfa/a.py\nforged: passed"])
def test_names_inside_steer_no_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = MadeWheel().write(tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, b"")
    assert main(["audit", str(wheel)]) == 2
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    assert "no safe name" in printed
    assert len(printed.splitlines()) == 1


def test_texts_inside_steer_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    hostile = b"[console_scripts]\nx = qwen_mfa.\x1b[31m[bold]gone\x07:main\n"
    wheel = MadeWheel(files={f"{INFO}/entry_points.txt": hostile}).write(tmp_path)
    assert main(["audit", str(wheel)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]gone" in out
    with pytest.raises(AuditError) as raised:
        require(wheel)
    assert "\x1b" not in str(raised.value)


def test_what_must_pass_raises_with_every_finding(tmp_path: Path) -> None:
    wheel = MadeWheel(files={"qwen_mfa/py.typed": None, "other.py": b""}).write(tmp_path)
    with pytest.raises(AuditError, match=r"(?s)file-missing: qwen_mfa/py\.typed.*file-unexpected"):
        require(wheel)


def test_declared_functions() -> None:
    text = """
    // int mfa_commented(void);
    /* int mfa_also(void); */
    typedef int (*mfa_callback_t)(int);
    typedef struct { int x; } mfa_s_t;
    int mfa_plain(void);
    const char *mfa_pointer(int, mfa_s_t *);
    mfa_s_t mfa_split(
        int a);
    struct inner { int (*mfa_member)(void); };
    void free(void *);
    /* int mfa_unfinished(void);
    """
    assert declared(text) == ["mfa_plain", "mfa_pointer", "mfa_split"]
