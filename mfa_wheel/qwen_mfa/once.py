"""Values that a process makes once, on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from qwen_mfa import forks

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Once(Generic[T]):
    """Calls ``make`` at the first call, whichever thread comes first; returns what that returned.

    When ``make`` raises, the next call tries again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[T] | None = None
        self._lock = forks.lock()

    def __call__(self) -> T:
        """Return the value."""
        made = self._made
        if made is None:
            with self._lock:
                made = self._made
                if made is None:
                    made = self._made = (self._make(),)
        return made[0]

    def forget(self) -> None:
        """Make it anew at the next call, as a new process would."""
        with self._lock:
            self._made = None
