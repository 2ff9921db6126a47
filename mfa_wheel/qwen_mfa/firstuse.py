"""Has forks wait while another thread uses this package for the first time.

Only the thread that forks exists in the child. The locks of Python's imports that another one holds
stay held there, and whoever imports the same module waits for ever. We import at first use, so a
fork at that moment has to wait. Imported with the package, so nothing here is slow to import.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock

_PATIENCE = 5.0  # seconds; the first use takes a few tenths, most of it imports


class _FirstUse:
    """A context that forks wait for, in other threads, for a limited time."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._taken = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def before(self) -> None:
        """Wait, in the thread that forks."""
        known = "logging" in sys.modules
        self._taken = self._lock.acquire(timeout=_PATIENCE)
        if not known and "logging" in sys.modules:
            # Imported while we waited, too late for its own hook here; but the one that gives back
            # what that would have taken runs after the fork, and would print an error.
            sys.modules["logging"]._lock.acquire()  # noqa: SLF001

    def after(self) -> None:
        """Go on, in the parent; in the child, which has the thread that took it."""
        if self._taken:
            self._lock.release()

    def after_in_child(self) -> None:
        """Go on, in the child: who holds it there does not exist, unless it is this thread."""
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
