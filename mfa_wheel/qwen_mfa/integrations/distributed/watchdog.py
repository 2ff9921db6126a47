"""A limit on waiting for others: MLX's collectives wait for ever when a peer hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h

# Ends when its standard input does, or ends the process that it watches.
_WATCHER = """
import os, select, signal, sys
process, limit, message = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if not select.select([0], [], [], limit)[0]:
    os.write(2, message.encode())
    os.kill(process, signal.SIGKILL)
"""


@contextmanager
def watching(message: str, limit: float) -> Iterator[None]:
    """End this process, with ``message``, when the block takes longer than ``limit`` seconds.

    A thread cannot interrupt a collective, and neither can Ctrl-C: only the process can end. What
    waits here is never in the middle of writing a file.
    """
    watchdog = threading.Timer(limit, _end, args=(message,))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@contextmanager
def watching_from_outside(message: str, limit: float) -> Iterator[None]:
    """Do the same by a process of its own, for blocks that hold the interpreter's lock.

    ``mx.distributed.init`` does (seen in MLX 0.32.4's ring, where rank 0 waits without a limit):
    no thread of ours runs meanwhile.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, str(os.getpid()), str(limit), _line(message)],
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        watcher.communicate()  # closes its standard input


def _end(message: str) -> None:
    # Not sys.stderr: the stuck thread may hold its lock, and a worker's goes nowhere.
    os.write(2, _line(message).encode())
    os._exit(EXIT_STATUS)


def _line(message: str) -> str:
    return f"qwen-mfa: {message}\n"
