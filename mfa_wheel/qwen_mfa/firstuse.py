"""Has forks wait while another thread uses this package, or a part of it, for the first time.

Only the thread that forks exists in the child. The locks of Python's imports that another one holds
stay held there, and whoever imports the same module waits for ever. We import at first use, so a
fork at that moment has to wait; and cffi reads each C type under a lock when it is first asked for.
Imported with the package, so nothing here is slow to import.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock
from typing import Any

_PATIENCE = 5.0  # seconds; the first use takes a few tenths, most of it imports


class _FirstUse:
    """A context that forks wait for, in other threads, for a limited time."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._taken = False
        self._others: list[Any] = []
        self._others_taken: list[Any] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def covers(self, lock: Any) -> None:
        """Have forks wait for ``lock`` of another package, too; a child finds it open."""
        self._others.append(lock)

    def before(self) -> None:
        """Wait, in the thread that forks."""
        known = "logging" in sys.modules
        self._taken = self._lock.acquire(timeout=_PATIENCE)
        if not known and "logging" in sys.modules:
            # Imported while we waited, too late for its own hook here; but the one that gives back
            # what that would have taken runs after the fork, and would print an error.
            sys.modules["logging"]._lock.acquire()  # noqa: SLF001
        self._others_taken = [each for each in self._others if each.acquire(timeout=_PATIENCE)]

    def after(self) -> None:
        """Go on, in the parent."""
        for each in self._others_taken:
            each.release()
        if self._taken:
            self._lock.release()

    def after_in_child(self) -> None:
        """Go on, in the child: who holds a lock there does not exist, unless it is this thread."""
        for each in self._others:
            # What Python's own modules call for their locks.
            each._at_fork_reinit()  # noqa: SLF001
        if self._taken:
            self._lock.release()
        else:
            self._lock = RLock()


first_use = _FirstUse()
# Hooks only: nothing runs until a fork.
os.register_at_fork(
    before=first_use.before,
    after_in_parent=first_use.after,
    after_in_child=first_use.after_in_child,
)
