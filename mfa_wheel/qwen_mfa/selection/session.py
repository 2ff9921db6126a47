"""What this process knows of its kernels, in one object: choices made, kernels that failed.

There is one instance, `current`. `start` begins anew, as a new process would.
"""

from __future__ import annotations

import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING

from qwen_mfa import settings
from qwen_mfa.selection import override

if TYPE_CHECKING:
    from qwen_mfa.selection.choose import Choice
    from qwen_mfa.selection.override import Policy

MAX_CHOICES = 4096  # of problems and of kinds of calls, not of classes: a bound on memory


class Session:
    """Choices and failures.

    Attributes:
        generation: Grows whenever choices cease to hold. One that was made in an earlier generation
            is not kept: another thread may have seen its kernel fail meanwhile.
        choices: The one cache, by problem or by kind of call. Look up freely; `keep` puts in.
        quarantined: Kernels that failed in this process, with what happened.

    """

    def __init__(self) -> None:
        self.generation = 0
        self.choices: dict[object, Choice] = {}
        self.quarantined: dict[str, str] = {}
        self._lock = threading.Lock()

    @cached_property
    def policy(self) -> Policy:
        """Return what the environment forces or forbids.

        Raises:
            BackendError: ``QWEN_MFA_BACKEND`` names no kernel.
            SettingError: Another variable has a value that means nothing.

        """
        return override.of_environment(settings.current().backend)

    def keep(self, key: object, choice: Choice, generation: int) -> None:
        """Keep ``choice``, which was made in ``generation``, if it still holds."""
        with self._lock:
            if generation != self.generation:
                return
            if len(self.choices) >= MAX_CHOICES:
                self.choices.clear()
            self.choices[key] = choice

    def quarantine(self, kernel: str, reason: str) -> bool:
        """Use ``kernel`` no more in this process; tell whether that is news."""
        with self._lock:
            is_news = kernel not in self.quarantined
            if is_news:
                self.quarantined[kernel] = f"failed in this process ({reason})"
            self._forget()
        return is_news

    def after_fork(self) -> None:
        """Take a new lock (another thread may have held the old one); choose anew."""
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self.choices.clear()


current = Session()


def start() -> Session:
    """Begin anew: settings, choices and records are read again at the next call."""
    global current  # noqa: PLW0603 - the one instance
    settings.current.cache_clear()
    from qwen_mfa.selection import decisions  # noqa: PLC0415 - not for the steady state

    decisions.forget()
    current = Session()
    return current


# A hook only: nothing runs until a fork.
os.register_at_fork(after_in_child=lambda: current.after_fork())  # noqa: PLW0108 - the current one then
