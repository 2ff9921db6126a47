"""A number that grows by one, as cheaply as threads allow: on the path of every call."""

from __future__ import annotations

from itertools import count


class Tally:
    """How often something happened.

    Attributes:
        add: Count one more. A single step in C, which no other thread comes between; so no lock.

    """

    __slots__ = ("_ignored", "_ticks", "add")

    def __init__(self) -> None:
        self._ticks = count()
        self._ignored = 0
        self.add = self._ticks.__next__

    def read(self) -> int:
        """Return how often it did so far. Not to be called by two threads at once."""
        found = next(self._ticks) - self._ignored
        self._ignored += 1  # looking counts, too
        return found

    def clear(self) -> None:
        """Begin at zero. Not to be called by two threads at once."""
        found = self.read()
        self._ignored += found
