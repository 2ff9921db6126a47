"""Child processes: their time limit holds whatever they start, and what they print is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from build_tools.support import files, process
from build_tools.support.console import printable, say
from build_tools.support.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A grandchild in a session of its own, which keeps the child's output open.
GRANDCHILD = (
    "import subprocess, sys, time\n"
    "program = 'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid()));'\n"
    "program += 'time.sleep(60)'\n"
    "subprocess.Popen([sys.executable, '-c', program, sys.argv[1]], start_new_session=True)\n"
    "print('started', flush=True)\n"
)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Where the grandchild writes its number; it is gone after the test in any case."""
    path = tmp_path / "pid"
    yield path
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has waited for yet is not alive.
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] != "Z"
    return True


def test_the_time_limit_holds_for_a_grandchild_with_its_own_session(
    mark: Path, tmp_path: Path
) -> None:
    text = f"{GRANDCHILD}while not __import__('os').path.exists(sys.argv[1]): time.sleep(0.01)\n"
    command = [sys.executable, "-c", f"{text}time.sleep(60)", str(mark)]
    before = time.monotonic()
    with pytest.raises(ToolError, match="ran longer than 6 s"):
        process.run(command, timeout=6)
    assert time.monotonic() - before < 30
    assert "started" in process.log_file().read_text(encoding="utf-8")
    pid, deadline = int(mark.read_text()), time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.05)


def test_nobody_waits_for_what_a_finished_child_leaves_behind(mark: Path, tmp_path: Path) -> None:
    before = time.monotonic()
    process.run([sys.executable, "-c", GRANDCHILD, str(mark)], timeout=50)
    assert time.monotonic() - before < 20
    assert "started" in process.log_file().read_text(encoding="utf-8")


def test_everything_that_is_printed_reaches_log_and_caller(tmp_path: Path) -> None:
    text = "print('x' * 300000); print('ü\\r\\nlast', end=''); sys.stdout.flush(); sys.exit(3)"
    lines: list[str] = []
    with pytest.raises(ToolError, match="exit status 3") as caught:
        process.run(
            [sys.executable, "-X", "utf8", "-c", f"import sys; {text}"],
            on_line=lines.append,
        )  # fmt: skip
    assert lines == ["x" * 300000, "ü", "last"]
    assert "ü\nlast" in str(caught.value)
    assert process.log_file().read_text(encoding="utf-8").endswith("\nü\nlast")


def test_output_that_is_no_utf8(tmp_path: Path) -> None:
    lines: list[str] = []
    text = "import os; os.write(1, b'a\\xff\\xc3'); os.write(1, b'\\xbc\\n')"
    process.run([sys.executable, "-c", text], on_line=lines.append)
    assert lines == ["a\ufffdü"]


def test_an_error_of_the_caller_ends_the_child(mark: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise RuntimeError(line)

    before = time.monotonic()
    with pytest.raises(RuntimeError, match="started"):
        process.run(
            [sys.executable, "-c", f"{GRANDCHILD}time.sleep(60)", str(mark)],
            on_line=stop,
        )  # fmt: skip
    assert time.monotonic() - before < 20


def test_a_folder_of_any_depth_can_be_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        name = "top"
        for _ in range(1050):
            os.mkdir(name, dir_fd=here)
            deeper = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here, name = deeper, "d"
    finally:
        os.close(here)
    (top / "link").symlink_to(tmp_path)
    (top / "locked").mkdir(mode=0)
    files.remove_tree(top)
    assert not top.exists()
    assert tmp_path.exists()


def test_nothing_from_outside_reaches_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;title\x07\u202eb\x9b31m\nforged\x85c"
    assert printable(hostile) == "a\\x1b]0;title\\x07\\u202eb\\x9b31m\\nforged\\x85c"
    say(f"error: {hostile}")
    told = capsys.readouterr().err
    assert not set(told) & {"\x1b", "\x07", "\u202e", "\x9b", "\x85"}
    assert "[red]" in _said("[red]", capsys)


def _said(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    say(text)
    return capsys.readouterr().err
