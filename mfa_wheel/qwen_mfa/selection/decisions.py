"""What was proved and measured here: one record per kernel and variant, or class."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwen_mfa.selection import environment, store
from qwen_mfa.tuning.measure import Sample
from qwen_mfa.validation.validate import Verdict

if TYPE_CHECKING:
    from qwen_mfa.validation.variants import Variant

# A process that dies while it proves or measures leaves its attempt behind; after so many, no other
# tries.
MOST_ATTEMPTS = 2


class Decisions:
    """Typed access to a `Store`. Records that are malformed count as absent."""

    def __init__(self, records: store.Store) -> None:
        self.store = records

    def verdict(self, kernel: str, variant: Variant, device: str) -> Verdict | None:
        """Return the outcome of a proof, if there was one."""
        record = self.store.get(f"proof {kernel} {device} {variant.key}")
        try:
            return None if record is None else Verdict(**record)
        except TypeError:
            return None

    def keep_verdict(self, kernel: str, variant: Variant, device: str, verdict: Verdict) -> None:
        """Keep the outcome of a proof."""
        self.store.put(f"proof {kernel} {device} {variant.key}", asdict(verdict))

    def samples(self, kernel: str, class_key: str, device: str) -> list[Sample] | None:
        """Return what was measured for a class, if it was."""
        record = self.store.get(f"class {kernel} {device} {class_key}")
        try:
            return None if record is None else [Sample(**x) for x in record["samples"]]
        except (TypeError, KeyError):
            return None

    def keep_samples(self, kernel: str, class_key: str, device: str, samples: list[Sample]) -> None:
        """Keep what was measured."""
        self.store.put(
            f"class {kernel} {device} {class_key}", {"samples": [asdict(x) for x in samples]}
        )

    def standing(self, kernel: str) -> bool | None:
        """Whether the kernel survived its first proof in a child process; ``None``: not tried."""
        found = (self.store.get(f"child {kernel}") or {}).get("survived")
        return found if isinstance(found, bool) else None

    def keep_standing(self, kernel: str, reason: str) -> None:
        """Keep that the kernel survived (no reason), or how it ended its process."""
        self.store.put(f"child {kernel}", {"survived": not reason, "reason": reason})

    def death(self, kernel: str) -> str:
        """Return how the kernel ended the process of its proof."""
        return str((self.store.get(f"child {kernel}") or {}).get("reason", ""))

    def attempts(self, kernel: str, class_key: str) -> int:
        """Return how many processes died while proving or measuring a class."""
        found: Any = (self.store.get(f"attempt {kernel} {class_key}") or {}).get("count", 0)
        return found if isinstance(found, int) else 0

    def keep_attempts(self, kernel: str, class_key: str, count: int) -> None:
        """Keep that number; a process adds itself before, and takes itself out after."""
        self.store.put(f"attempt {kernel} {class_key}", {"count": count} if count else None)

    def failure(self, kernel: str) -> str:
        """Return the last failure at run time, in any process."""
        return str((self.store.get(f"failure {kernel}") or {}).get("reason", ""))

    def keep_failure(self, kernel: str, reason: str) -> None:
        """Keep it for ``qwen-mfa doctor``."""
        self.store.put(f"failure {kernel}", {"reason": reason})


_lock = threading.Lock()
_opened: Decisions | None = None


def opened() -> Decisions:
    """Return this environment's decisions, read on first use."""
    global _opened  # noqa: PLW0603 - the one cached instance
    found = _opened
    if found is None:
        with _lock:
            found = _opened
            if found is None:
                found = Decisions(store.Store(store.folder(), environment.environment()))
                _opened = found
    return found


def forget() -> None:
    """Drop the cached instance, so that the next use reads again. Meant for tests."""
    global _opened  # noqa: PLW0603
    with _lock:
        _opened = None
