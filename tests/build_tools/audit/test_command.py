"""The audit command: exit status, table, JSON, policies, and files that are no wheels."""

from __future__ import annotations

import json
import os
import re
import zipfile
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.audit import policy
from build_tools.audit.codes import CODES
from build_tools.audit.findings import AuditError, UnreadableWheelError
from build_tools.audit.gate import require
from build_tools.support.errors import UsageError
from tests.build_tools.audit.makers import INFO, ROOT, Recipe

if TYPE_CHECKING:
    from pathlib import Path


def test_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(Recipe().write(tmp_path))]) == 0
    assert "passed: nothing found" in capsys.readouterr().out


def test_notes_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = Recipe(tag="py3-none-win_amd64").write(tmp_path)
    assert main(["audit", str(wheel)]) == 0
    assert "platform-without-binaries" in capsys.readouterr().out


def test_findings_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = Recipe(without=(f"{INFO}/RECORD",)).write(tmp_path)
    assert main(["audit", str(wheel)]) == 1
    out = capsys.readouterr().out
    for word in ("severity", "code", "file", "what", "how to mend", "record-missing", "1 error"):
        assert word in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = Recipe().write(tmp_path)
    bad = Recipe(filename="demo-1.0-py3-none-win32.whl").write(tmp_path)
    assert main(["audit", "--json", str(good), str(bad), str(tmp_path / "none.whl")]) == 2
    first, second, third = json.loads(capsys.readouterr().out)
    assert first["passed"] is True
    assert second["passed"] is False
    assert {"code", "severity", "file", "what", "mend"} == set(second["findings"][0])
    assert second["summary"]["error"] >= 1
    assert "cannot be read" in third["error"]


UNREADABLE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"not a wheel\n" * 100,
    "empty zip": lambda _: b"PK\x05\x06" + bytes(18),
    "huge directory": lambda _: b"PK\x05\x06" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6),
    "wrong directory": lambda data: data[:-10] + b"\xff\xff\xff" + data[-7:],
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_unreadable(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = Recipe().write(tmp_path)
    wheel.write_bytes(UNREADABLE[damage](wheel.read_bytes()))  # type: ignore[no-untyped-call]
    assert main(["audit", str(wheel)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_other_things_than_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe-1.0-py3-none-any.whl"
    os.mkfifo(pipe)
    assert main(["audit", str(tmp_path), str(pipe), str(tmp_path / "a\0b"), "/dev/zero"]) == 2
    err = capsys.readouterr().err
    assert "is a folder" in err
    assert err.count("no regular file") == 2


def test_another_zip_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    assert main(["audit", "--json", str(path)]) == 1
    codes = {each["code"] for each in json.loads(capsys.readouterr().out)[0]["findings"]}
    assert {"filename-invalid", "dist-info-count"} <= codes


def test_a_sparse_giant(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with path.open("wb") as stream:
        stream.truncate(200 * 1024**3)
    with pytest.raises(UnreadableWheelError, match="no end record"):
        require(path)
    assert not path.exists(), "what does not pass the gate is not left behind"


def test_terminal_codes_in_names_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = Recipe().write(tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("demo/\x1b[31m[bold]red.py", b"")
    assert main(["audit", str(wheel)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]red.py" in out


# ---------------------------------------------------------------- policies


def test_policy_changes_severities(tmp_path: Path) -> None:
    wheel = str(Recipe(filename="demo-1.0-py3-none-win32.whl").write(tmp_path))
    rules = tmp_path / "policy.toml"
    rules.write_text(
        '[codes]\nwheel-tag-mismatch = "ignore"\nplatform-without-binaries = "error"\n',
        encoding="utf-8",
    )
    assert main(["audit", "--policy", str(rules), wheel]) == 1
    rules.write_text(
        '[codes]\nplatform-without-binaries = "ignore"\n'
        '[[allow]]\ncode = "wheel-tag-mismatch"\nfile = "*/WHEEL"\nreason = "a test"\n',
        encoding="utf-8",
    )
    assert main(["audit", "--policy", str(rules), wheel]) == 0


BAD_POLICIES = {
    "[codes": "not TOML",
    '[codes]\nunheard-of = "error"': "no code 'unheard-of'",
    '[codes]\nbuild-path = "fatal"': "none of error, note, warning, ignore",
    '[[allow]]\ncode = "build-path"\nfile = "*"': "code, file and reason",
    "[more]": "unknown key 'more'",
    "codes = 3": "codes is not a table",
    '[files]\nrequired = "x"': "not a list",
    "[abi]\nlibrary = 3": "needs library",
}


@pytest.mark.parametrize("text", BAD_POLICIES)
def test_bad_policies(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(BAD_POLICIES[text])):
        policy.parse(text, "test")


def test_policy_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = str(Recipe().write(tmp_path))
    assert main(["audit", "--policy", str(tmp_path / "none.toml"), wheel]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_strict_policy_leaves_no_code_aside() -> None:
    codes = policy.strict().codes
    lenient = {code for code, (severity, _, _) in CODES.items() if severity != "error"}
    # An early field in METADATA is the backend's doing, and harmless.
    assert lenient - set(codes) == {"metadata-early"}
    assert set(codes.values()) == {"error"}
    assert not policy.strict().allow


def test_the_gate_removes_what_fails(tmp_path: Path) -> None:
    wheel = Recipe().write(tmp_path)
    with pytest.raises(AuditError, match=r"file-required: .*py\.typed"):
        require(wheel)
    assert not wheel.exists()


def test_declared_functions() -> None:
    text = """
    // int commented(void);
    /* int also(void); */
    typedef int (*callback_t)(int);
    typedef struct { int x; } s_t;
    int plain(void);
    const char *pointer(int, s_t *);
    s_t split(
        int a);
    struct inner { int (*member)(void); };
    """
    assert policy.declared_functions(text) == {"plain", "pointer", "split"}


# ---------------------------------------------------------------- documentation


def test_the_documentation_lists_every_code() -> None:
    text = (ROOT / "docs" / "auditing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert {code: (severity, what, mend) for code, severity, what, mend in rows} == CODES
