"""What a forked child must not inherit: locks that another thread holds, and rights on files.

Only the thread that forks exists in the child. A lock that another one held would stay held there
for ever, and a locked file would stay locked as long as the child lives. For locks that
are not ours see `qwen_mfa.firstuse`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterator

_locks: WeakSet[threading.Lock] = WeakSet()
_handles: set[int] = set()


def lock() -> threading.Lock:
    """Return a lock that a forked child finds open."""
    made = threading.Lock()
    _locks.add(made)
    return made


@contextlib.contextmanager
def kept_from_children(handle: int) -> Iterator[int]:
    """Close ``handle`` after the context; in children that are forked within, at once."""
    _handles.add(handle)
    try:
        yield handle
    finally:
        _handles.discard(handle)
        os.close(handle)


def hollow(handle: int) -> None:
    """Close what ``handle`` refers to, but keep its number from becoming another file's."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, handle, inheritable=False)
    os.close(nothing)


def _after_fork() -> None:
    for held in _locks:
        # What Python's own modules call for their locks.
        held._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001
    for handle in _handles:
        hollow(handle)


os.register_at_fork(after_in_child=_after_fork)  # a hook only: nothing runs until a fork
