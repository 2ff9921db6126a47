"""A lock between processes: a file that one of them holds, and that goes with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds ``path``, and hold it while the body runs.

    The file stays: removing it would let two processes hold two files of one name.

    Raises:
        OSError: It cannot be made or opened, or is a symbolic link.

    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # Without O_CREAT first: Linux refuses that for another user's file in a shared folder.
        handle = os.open(path, flags)
    except FileNotFoundError:
        handle = os.open(path, flags | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
