"""What a forked child must not inherit: locks that another thread holds, and rights on files.

Only the thread that forks exists in the child. A lock that another one held would stay held there
for ever, and a locked file would stay locked as long as the child lives. For locks that
are not ours see `qwen_mfa.firstuse`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Process:
    """What this process has to deal with when it turns out to be a forked child."""

    def __init__(self) -> None:
        self.was_forked = False
        self.locks: WeakSet[Any] = WeakSet()
        self.handles: set[int] = set()

    def after_fork(self) -> None:
        """Open the locks, close the files."""
        self.was_forked = True
        for held in self.locks:
            # What Python's own modules call for their locks.
            held._at_fork_reinit()  # noqa: SLF001
        for handle in self.handles:
            hollow(handle)


_process = _Process()


def happened() -> bool:
    """Whether this process was forked after the import: MLX's default stream is dead in it."""
    return _process.was_forked


def lock() -> threading.Lock:
    """Return a lock that a forked child finds open."""
    made = threading.Lock()
    _process.locks.add(made)
    return made


def reentrant_lock() -> threading.RLock:
    """Return a lock that a thread may take again, and that a forked child finds open."""
    made = threading.RLock()
    _process.locks.add(made)
    return made


@contextlib.contextmanager
def kept_from_children(handle: int) -> Iterator[int]:
    """Close ``handle`` after the context; in children that are forked within, at once."""
    _process.handles.add(handle)
    try:
        yield handle
    finally:
        _process.handles.discard(handle)
        os.close(handle)


def hollow(handle: int) -> None:
    """Close what ``handle`` refers to, but keep its number from becoming another file's."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, handle, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_process.after_fork)  # a hook only: nothing runs until a fork
