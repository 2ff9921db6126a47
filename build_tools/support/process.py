"""Child processes: output into a log, progress to the caller, failures in the tool's words."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.support.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TAIL_LINES = 40


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
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 3600,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run ``command``, appending its merged output to ``log``.

    Args:
        command: Program and arguments; no shell is involved.
        log: File that receives the command line and everything that it prints.
        cwd: Working folder.
        env: The whole environment of the child; ours when ``None``.
        timeout: Seconds, after which the whole process group is killed.
        on_line: Called with every line of output as it comes.

    Raises:
        ToolError: The program is missing, exits non-zero, or runs out of time. The message ends
            with the last lines that it printed and names the log.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
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
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            msg = f"`{shown}` could not be started: {error}"
            raise ToolError(msg) from error
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            _kill_group(child)

        timer = threading.Timer(timeout, kill)
        timer.start()
        try:
            for line in child.stdout or ():
                sink.write(line)
                tail.append(line)
                if on_line is not None:
                    on_line(line.rstrip())
            status = child.wait()
        except BaseException:
            _kill_group(child)
            child.wait()
            raise
        finally:
            timer.cancel()
            if child.stdout is not None:
                child.stdout.close()
    if status != 0:
        cause = f"ran longer than {timeout:g} s" if expired.is_set() else f"exit status {status}"
        msg = f"`{shown}` failed ({cause}). Its last lines:\n{''.join(tail)}Full log: {log}"
        raise ToolError(msg)


def _kill_group(child: subprocess.Popen[str]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
