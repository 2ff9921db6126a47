"""Values that are made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qwen_mfa.once import Once, once_property
from tests.qwen_mfa.conftest import python

if TYPE_CHECKING:
    from collections.abc import Callable

FORKING = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, about forks beside threads
from qwen_mfa.selection import override, session
making, made = threading.Event(), threading.Event()
def slow(backend):
    making.set()
    made.wait()
kept = override.of_environment
override.of_environment = slow
threading.Thread(target=lambda: session.Session().policy).start()
making.wait()
child = os.fork()
if child == 0:
    override.of_environment = kept
    session.Session().policy
    print("answered", flush=True)
    os._exit(0)
os.waitpid(child, 0)
made.set()
"""


class Owner:
    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make

    @once_property
    def value(self) -> object:
        """The value."""
        return self.make()


def test_a_property_is_made_once_for_each_object_and_anew_once_deleted() -> None:
    one, two = Owner(object), Owner(object)
    first = one.value
    assert one.value is first
    assert two.value is not first
    del one.value
    assert one.value is not first
    assert Owner.value.__doc__ == "The value."


def test_what_raises_is_made_at_the_next_time() -> None:
    answers = iter([0, 2])
    made = Once(lambda: 4 // next(answers))
    with pytest.raises(ZeroDivisionError):
        made()
    assert made() == made() == 2


def test_a_fork_while_another_thread_makes_a_property_leaves_nothing_held() -> None:
    done = python(FORKING, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")
