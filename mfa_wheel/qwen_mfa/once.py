"""Values that a process, or an object, makes once, on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, overload

from qwen_mfa import forks

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Owner = TypeVar("Owner")


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


class once_property(Generic[Owner, T]):  # noqa: N801 - read as `property` is
    """`functools.cached_property` without the lock that it takes before Python 3.12.

    There is one for all instances, and a child that is forked while another thread holds it waits
    for ever. Without it two threads may each make the value; the first one is kept. Deleting the
    attribute makes it anew.
    """

    def __init__(self, make: Callable[[Owner], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type[Owner], name: str) -> None:
        """Learn the attribute's name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[Owner]) -> once_property[Owner, T]: ...

    @overload
    def __get__(self, instance: Owner, owner: type[Owner]) -> T: ...

    def __get__(self, instance: Owner | None, owner: type[Owner]) -> once_property[Owner, T] | T:
        """Return the value; later look-ups find it in the instance itself."""
        if instance is None:
            return self
        made: T = instance.__dict__.setdefault(self._name, self._make(instance))
        return made
