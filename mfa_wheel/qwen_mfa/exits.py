"""Keeps the interpreter's end from tearing a daemon thread out of MLX while it computes for us.

Before Python 3.14, a daemon thread that comes back from native code while the interpreter ends is
made to exit, which unwinds its stack. MLX calls our kernels from C++ (`mx.custom_function`), which
does not survive that: SIGSEGV. So at exit we wait for those that are inside, and whoever would go
in afterwards stays outside for good, as Python 3.14 itself has it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0  # seconds; longer than a call for a large picture on a slow processor


class _Inside:
    """The threads that compute for us. Its methods rely on operations of dict being atomic."""

    def __init__(self) -> None:
        self._threads: dict[int, bool] = {}
        self._watched = sys.version_info >= (3, 14)
        self._ending = False

    @contextmanager
    def stay(self) -> Iterator[None]:
        """Be inside during the context."""
        if not self._watched:
            self._watched = True
            atexit.register(self._end)
        me = threading.get_ident()
        if me in self._threads:
            yield
            return
        # Before the question, so that the end sees us, or we see the end.
        self._threads[me] = True
        if self._ending and threading.current_thread() is not threading.main_thread():
            del self._threads[me]
            threading.Event().wait()
        try:
            yield
        finally:
            self._threads.pop(me, None)

    def after_fork(self) -> None:
        """Forget the threads that a forked child does not have."""
        me = threading.get_ident()
        self._threads = {me: True} if me in self._threads else {}

    def _end(self) -> None:
        self._ending = True
        end = time.monotonic() + PATIENCE
        while self._threads.keys() - {threading.get_ident()} and time.monotonic() < end:
            time.sleep(0.001)


_inside = _Inside()
inside = _inside.stay
os.register_at_fork(after_in_child=_inside.after_fork)  # a hook only: nothing runs until a fork
