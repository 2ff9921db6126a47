"""A number that grows by one, as cheaply as threads allow: on the path of every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading


class Tally:
    """How often something happened.

    Attributes:
        lock: To be held while ``number`` is changed; many tallies share one.
        number: How often so far.

    """

    __slots__ = ("lock", "number")

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.number = 0

    def add(self) -> None:
        """Count one more."""
        with self.lock:
            self.number += 1
