"""What this process knows of its kernels, in one object: choices made, kernels that failed.

There is one instance, `current`; `start` makes it anew.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from qwen_mfa import forks, settings
from qwen_mfa.once import once_property
from qwen_mfa.selection import override
from qwen_mfa.transforms.masks import Looks

if TYPE_CHECKING:
    from qwen_mfa.selection.choose import Choice
    from qwen_mfa.selection.override import Policy
    from qwen_mfa.selection.removal import Removal
    from qwen_mfa.tally import Tally
    from qwen_mfa.transforms.autodiff import Repeater
    from qwen_mfa.transforms.padding import Shortener

T = TypeVar("T")

MAX_CHOICES = 4096  # of problems and of kinds of calls, not of classes: a bound on memory


class Session:
    """Choices and failures.

    Attributes:
        generation: Grows whenever choices cease to hold. One that was made in an earlier generation
            is not kept: another thread may have seen its kernel fail meanwhile.
        choices: The one cache of choices, by problem. Look up freely; `keep` puts in.
        removals: The same of masks, by problem and pattern.
        straight: Kinds of calls that go straight to MLX, and what counts them; `keep_straight`.
        shorteners: Kinds of calls whose masks hide the same keys each time; `keep_shortener`.
        repeaters: Kinds of calls that one kernel computes each time; `keep_repeater`.
        looks: At masks, where looking may wait.
        quarantined: Kernels that failed in this process, with what happened.

    """

    def __init__(self) -> None:
        self.generation = 0
        self.choices: dict[object, Choice] = {}
        self.removals: dict[object, Removal] = {}
        self.looks = Looks()
        self.straight: dict[object, Tally] = {}
        self.shorteners: dict[object, Shortener] = {}
        self.repeaters: dict[object, Repeater] = {}
        self.quarantined: dict[str, str] = {}
        self._lock = forks.lock()

    @once_property
    def policy(self) -> Policy:
        """Return what the environment forces or forbids.

        Raises:
            BackendError: ``QWEN_MFA_BACKEND`` names no kernel.
            SettingError: Another variable has a value that means nothing, or not on this machine.
            LibraryError: ``QWEN_MFA_LIBRARY`` names a library that cannot be used.

        """
        said = settings.current()
        if said.library is not None or said.isa:
            from qwen_mfa.native import library  # noqa: PLC0415 - seldom set

            library.check_what_is_set()
        return override.of_environment(said.backend)

    def keep(self, key: object, choice: Choice, generation: int) -> None:
        """Keep ``choice``, which was made in ``generation``, if it still holds."""
        self._keep(self.choices, key, choice, generation)

    def keep_removal(self, key: object, removal: Removal, generation: int) -> None:
        """Keep ``removal``, as `keep` does."""
        self._keep(self.removals, key, removal, generation)

    def keep_straight(self, key: object, tally: Tally, generation: int) -> None:
        """Keep that a kind of call is MLX's, which was found in ``generation``, if it still is."""
        self._keep(self.straight, key, tally, generation)

    def keep_shortener(self, key: object, shortener: Shortener, generation: int) -> None:
        """Keep how a kind of call is computed without its mask, as `keep_straight` does."""
        self._keep(self.shorteners, key, shortener, generation)

    def keep_repeater(self, key: object, repeater: Repeater, generation: int) -> None:
        """Keep how a kind of call is computed by a kernel, as `keep_straight` does."""
        self._keep(self.repeaters, key, repeater, generation)

    def quarantine(self, kernel: str, reason: str) -> bool:
        """Use ``kernel`` no more in this process; tell whether that is news."""
        with self._lock:
            is_news = kernel not in self.quarantined
            if is_news:
                self.quarantined[kernel] = f"failed in this process ({reason})"
            self._forget()
        return is_news

    def start(self) -> None:
        """Begin anew, as a new process would: nothing failed, and all is read and chosen again."""
        from qwen_mfa.selection import decisions  # noqa: PLC0415 - not for the steady state

        settings.current.forget()
        decisions.opened.forget()
        with self._lock:
            self.__dict__.pop("policy", None)
            self.looks = Looks()
            self.quarantined.clear()
            self._forget()

    def after_fork(self) -> None:
        """Choose anew: nothing native was validated for a forked child."""
        self._forget()

    def _keep(self, kept: dict[object, T], key: object, value: T, generation: int) -> None:
        with self._lock:
            if generation != self.generation:
                return
            if len(kept) >= MAX_CHOICES:
                kept.clear()
            kept[key] = value

    def _forget(self) -> None:
        self.generation += 1
        self.choices.clear()
        self.removals.clear()
        self.straight.clear()
        self.shorteners.clear()
        self.repeaters.clear()


current = Session()


def start() -> None:
    """Begin anew: see `Session.start`."""
    current.start()


os.register_at_fork(after_in_child=current.after_fork)  # a hook only: nothing runs until a fork
