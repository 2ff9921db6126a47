"""What was validated and measured here: one record per kernel and variant, or class."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeVar

from qwen_mfa.once import Once
from qwen_mfa.selection import environment, store
from qwen_mfa.selection.attempts import Death, marked
from qwen_mfa.selection.records import parse
from qwen_mfa.tuning.measure import Sample
from qwen_mfa.validation.validate import ValidationResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_mfa.validation.variants import Variant

T = TypeVar("T")
# After so many crashes while a class was validated or measured, or validations without an answer,
# no other process tries.
MAX_ATTEMPTS = 2
# Far beyond what is ever measured: the exponential of this is 8e13.
_MAX_GAIN = 32.0
_HUGE = 1e99


class Decisions:
    """Typed access to a `Store`. Records that are malformed count as absent."""

    def __init__(self, records: store.Store) -> None:
        self.store = records

    def validation(self, kernel: str, variant: Variant, device: str) -> ValidationResult | None:
        """Return the outcome of a validation, if there was one."""
        key = f"validation {kernel} {device} {variant.key}"
        return self._parsed(key, self.store.get(key), ValidationResult)

    def keep_validation(
        self, kernel: str, variant: Variant, device: str, result: ValidationResult
    ) -> None:
        """Keep the outcome of a validation."""
        finite = replace(result, error=_finite(result.error), margin=_finite(result.margin))
        self.store.put(f"validation {kernel} {device} {variant.key}", asdict(finite))

    def samples(self, kernel: str, class_key: str, device: str) -> list[Sample] | None:
        """Return what was measured for a class, if it was."""
        key = f"class {kernel} {device} {class_key}"
        record = self.store.get(key)
        if record is None:
            return None
        found = record.get("samples")
        if not isinstance(found, list) or not 1 <= len(found) <= 2:  # the ends of the class
            self._malformed(key)
            return None
        samples = [self._parsed(key, each, Sample) for each in found]
        if not all(sample is not None and _is_sane(sample) for sample in samples):
            self._malformed(key)
            return None
        return [sample for sample in samples if sample is not None]

    def keep_samples(self, kernel: str, class_key: str, device: str, samples: list[Sample]) -> None:
        """Keep what was measured."""
        self.store.put(
            f"class {kernel} {device} {class_key}", {"samples": [asdict(x) for x in samples]}
        )

    def standing(self, kernel: str) -> bool | None:
        """Whether the kernel survived its first validation in a child; ``None``: not tried."""
        return self._value(f"child {kernel}", "survived", bool)

    def keep_standing(self, kernel: str, reason: str) -> None:
        """Keep that the kernel survived (no reason), or how it ended its process."""
        self.store.put(f"child {kernel}", {"survived": not reason, "reason": reason})

    def death(self, kernel: str) -> str:
        """Return how the kernel ended the process of its validation."""
        return self._value(f"child {kernel}", "reason", str) or ""

    def attempts(self, kernel: str, class_key: str) -> int:
        """Return how often validating or measuring a class crashed a process or gave no answer."""
        return max(0, self._value(f"attempt {kernel} {class_key}", "count", int) or 0)

    def keep_attempts(self, kernel: str, class_key: str, count: int) -> None:
        """Keep that number."""
        if count != self.attempts(kernel, class_key):
            self.store.put(f"attempt {kernel} {class_key}", {"count": count} if count else None)

    @contextlib.contextmanager
    def attempt(self, kernel: str, class_key: str) -> Iterator[Death]:
        """Mark that a class is being validated or measured; tell how the last process ended there.

        A crash is counted: see `attempts`.
        """
        with marked(self.store, f"{kernel} {class_key}") as death:
            if death.counts:
                self.keep_attempts(kernel, class_key, self.attempts(kernel, class_key) + 1)
            yield death

    def failure(self, kernel: str) -> str:
        """Return the last failure at run time, in any process."""
        return self._value(f"failure {kernel}", "reason", str) or ""

    def keep_failure(self, kernel: str, reason: str) -> None:
        """Keep it for ``qwen-mfa doctor``."""
        self.store.put(f"failure {kernel}", {"reason": reason})

    def _parsed(self, key: str, record: object, kind: type[T]) -> T | None:
        found = None if record is None else parse(kind, record)
        if found is None and record is not None:
            self._malformed(key)
        return found

    def _value(self, key: str, field: str, kind: type[T]) -> T | None:
        """Return one value of a record, if it is of just that type: a bool is no int."""
        record = self.store.get(key)
        found = None if record is None else record.get(field)
        if type(found) is kind:
            return found
        if record is not None:
            self._malformed(key)
        return None

    def _malformed(self, key: str) -> None:
        self.store.note(f"the record {key!r} is malformed, and counts as absent")


def _finite(error: float) -> float:
    """A kernel's results can be NaN; a record with that would be no JSON."""
    return error if math.isfinite(error) else _HUGE


def _is_sane(sample: Sample) -> bool:
    times = sample.seconds > 0 and sample.seconds_mlx > 0 and sample.pairs > 0
    return times and abs(sample.gain) <= _MAX_GAIN and 0 <= sample.noise <= _MAX_GAIN


# This environment's decisions, read on first use.
opened = Once(lambda: Decisions(store.Store(store.folder(), environment.environment())))
