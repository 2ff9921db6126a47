"""Child processes: output into a log, progress to the caller, failures in the tool's words."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from build_tools.support.errors import ToolError
from build_tools.support.paths import ROOT

TAIL_LINES = 40
PIPE_ROOM = 1 << 20  # bytes that a pipe may hold, on any of our systems
POLL = 0.1  # seconds after which a child that prints nothing is looked at

# The log has one owner, the command that runs (`logging_to`); nobody in between hands it on.
_LOG: ContextVar[Path] = ContextVar("log", default=ROOT / "build" / "logs" / "build.log")


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[Path]:
    """Let what `run` starts inside the body print into ``path``, a new file."""
    path = path.absolute()
    path.unlink(missing_ok=True)
    before = _LOG.set(path)
    try:
        yield path
    finally:
        _LOG.reset(before)


def log_file() -> Path:
    """Return the log that `run` writes to now."""
    return _LOG.get()


def find(program: str, *, hint: str) -> str:
    """Return the full path of ``program``, from PATH or from beside the running Python.

    Raises:
        ToolError: It is in neither; ``hint`` says how to get it.

    """
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        msg = f"{program} was not found on PATH. {hint}"
        raise ToolError(msg)
    return path


def capture(command: Sequence[str], *, timeout: float = 60, cwd: Path | None = None) -> str:
    """Run ``command`` and return its standard output, stripped."""
    try:
        done = subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=timeout
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or "").strip()
        msg = f"`{shlex.join(command)}` failed: {error}" + (f"\n{detail}" if detail else "")
        raise ToolError(msg) from error
    return done.stdout.strip()


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 3600,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run ``command``, appending its merged output to the log.

    Args:
        command: Program and arguments; no shell is involved.
        cwd: Working folder.
        env: The whole environment of the child; ours when ``None``.
        timeout: Seconds, after which the child is killed with everything that it started.
        on_line: Called with every line of output as it comes.

    Raises:
        ToolError: The program is missing, exits non-zero, or runs out of time. The message ends
            with the last lines that it printed and names the log.

    """
    log = log_file()
    log.parent.mkdir(parents=True, exist_ok=True)
    shown = shlex.join(command)
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {shown}\n")
        sink.flush()
        try:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            msg = f"`{shown}` could not be started: {error}"
            raise ToolError(msg) from error
        output = _Output(sink, on_line)
        try:
            expired = _follow(child, output, time.monotonic() + timeout)
        except BaseException:
            _kill(child)
            raise
        finally:
            output.finish()
            if child.stdout is not None:
                child.stdout.close()
    if expired or child.returncode != 0:
        cause = f"ran longer than {timeout:g} s" if expired else f"exit status {child.returncode}"
        msg = f"`{shown}` failed ({cause}). Its last lines:\n{''.join(output.tail)}Full log: {log}"
        raise ToolError(msg)


class _Output:
    """What a child prints, as it comes: into the log, to the caller, and its last lines."""

    def __init__(self, sink: TextIO, on_line: Callable[[str], None] | None) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._sink, self._on_line = sink, on_line
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._begun = ""

    def take(self, content: bytes, *, final: bool = False) -> None:
        text = self._begun + self._decoder.decode(content, final)
        *lines, self._begun = text.split("\n")
        for line in lines:
            self._line(f"{line}\n")

    def finish(self) -> None:
        self.take(b"", final=True)
        if self._begun:
            self._line(self._begun)

    def _line(self, line: str) -> None:
        self._sink.write(line)
        self.tail.append(line)
        if self._on_line is not None:
            self._on_line(line.rstrip())


def _follow(child: subprocess.Popen[bytes], output: _Output, deadline: float) -> bool:
    """Read until ``child`` ends; kill it at ``deadline`` and return whether that was so.

    The pipe may outlive the child, in a grandchild with a session of its own: what is in it when
    the child has ended is read, and nobody is waited for.
    """
    if child.stdout is None:  # pragma: no cover - we asked for it
        return False
    pipe, left = child.stdout.fileno(), PIPE_ROOM
    os.set_blocking(pipe, False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            if not ended and time.monotonic() >= deadline:
                _kill(child)
                return True
            if not selector.select(0 if ended else POLL):
                if ended:
                    return False
                continue
            content = os.read(pipe, 1 << 16)
            output.take(content)
            if not content:
                return _wait(child, deadline)
            left -= len(content) if ended else 0
            if left <= 0:  # the grandchild goes on printing
                return False


def _wait(child: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for a child that has closed its output."""
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(child)
        return True
    return False


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill ``child``, its group, and what descends from it in sessions of their own."""
    for process in (*_descendants(child.pid), child.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _descendants(pid: int) -> list[int]:
    """Return the processes below ``pid``; none where ``ps`` cannot say."""
    try:
        done = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="],
            check=True, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    children: dict[int, list[int]] = {}
    for line in done.stdout.splitlines():
        process, parent = map(int, line.split())
        children.setdefault(parent, []).append(process)
    found = list(children.get(pid, []))
    for each in found:
        found += children.get(each, [])
    return found
