"""The kernels that may stand in for MLX's, and what is known of each for a problem.

Validations and measurements happen here, one at a time in a process and in an environment:
other processes wait for the outcome rather than disturb the measurement and repeat it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import forks
from qwen_mfa.kernels import cpu
from qwen_mfa.selection import decisions
from qwen_mfa.selection.decisions import MAX_ATTEMPTS
from qwen_mfa.tuning import measure, removal
from qwen_mfa.validation.child import validate_in_child
from qwen_mfa.validation.validate import ValidationResult
from qwen_mfa.validation.validate import validate as validate_here
from qwen_mfa.validation.variants import class_of, variant_of

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Kernel
    from qwen_mfa.problem import Problem
    from qwen_mfa.transforms.padding import Pattern
    from qwen_mfa.tuning.measure import Sample

# Seconds to wait for another process that measures.
PATIENCE = 60.0

logger = logging.getLogger("qwen_mfa")
_lock = forks.reentrant_lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is known of one kernel for one problem.

    Attributes:
        kernel: The kernel.
        reason: Why it does not run, or how much faster it is; in words.
        validation: What it found, if it came that far.
        samples: What was measured, if it came that far.
        gain: Smallest measured log(MLX / kernel) if it is faster beyond doubt, else 0.
        final: Whether another try would find the same.

    """

    kernel: Kernel
    reason: str
    validation: ValidationResult | None = None
    samples: tuple[Sample, ...] = ()
    gain: float = 0.0
    final: bool = True


def recorded(kernel: Kernel, problem: Problem) -> Finding | None:
    """Return what is known without validating or measuring; ``None`` if that is needed."""
    result = validated(kernel, problem)
    if result is None:
        return None
    if not result.ok:
        reason = f"not validated: {result.reason}"
        return Finding(kernel=kernel, reason=reason, validation=result)
    place = _place(kernel, problem)
    samples = decisions.opened().samples(kernel.name, class_of(problem)[0], place)
    return None if samples is None else _judged(kernel, result, samples)


def validated(kernel: Kernel, problem: Problem) -> ValidationResult | None:
    """Return the result for the variant of ``problem``, if there is one."""
    kept = decisions.opened()
    if kept.standing(kernel.name) is False:
        return ValidationResult(ok=False, reason=kept.death(kernel.name), died=True)
    return kept.validation(kernel.name, variant_of(problem), _place(kernel, problem))


def validate(kernel: Kernel, problem: Problem) -> ValidationResult:
    """Validate ``kernel`` for the variant of ``problem``, unless that has been done."""
    with _lock, decisions.opened().store.measuring(PATIENCE) as mine:
        decisions.opened().store.refresh()
        result = validated(kernel, problem)
        if result is not None:
            return result
        if not mine:
            return ValidationResult(
                ok=False, reason="another process is validating it", lasting=False
            )
        return _validate(kernel, problem)


def investigate(kernel: Kernel, problem: Problem) -> Finding:
    """Validate and measure ``kernel`` for the class of ``problem``, unless that has been done.

    Raises:
        Exception: Whatever the kernel raises while it is measured.

    """
    kept = decisions.opened()
    key, *ends = class_of(problem)
    with _lock, kept.store.measuring(PATIENCE) as mine:
        kept.store.refresh()
        finding = recorded(kernel, problem)
        if finding is not None:
            return finding
        if not mine:
            return Finding(kernel=kernel, reason="another process is measuring", final=False)
        with kept.attempt(kernel.name, key) as death:
            attempts = kept.attempts(kernel.name, key)
            if attempts >= MAX_ATTEMPTS:
                reason = f"{attempts} times, validating or measuring it crashed or gave no answer"
                return Finding(kernel=kernel, reason=reason)
            careful = death.happened or attempts > 0
            result = validated(kernel, problem) or _validate(kernel, problem, careful=careful)
            if not result.lasting and not result.outside:
                kept.keep_attempts(kernel.name, key, attempts + 1)
            if not result.ok:
                reason = f"not validated: {result.reason}"
                return Finding(kernel=kernel, reason=reason, validation=result)
            samples = measure.measure(kernel, (ends[0], ends[1]))
            kept.keep_samples(kernel.name, key, _place(kernel, problem), samples)
            kept.keep_attempts(kernel.name, key, 0)
        for sample in samples:
            logger.info("kernel %s: %s", kernel.name, sample)
        return _judged(kernel, result, samples)


def removal_recorded(
    problem: Problem, pattern: Pattern, without: Kernel, masked: Kernel
) -> list[Sample] | None:
    """Return what was measured of leaving padded keys out; ``None`` where nothing was."""
    key = removal.class_key(problem, pattern)
    name = _removal_name(without, masked)
    return decisions.opened().samples(name, key, _place(without, problem))


def investigate_removal(
    problem: Problem, pattern: Pattern, without: Kernel, masked: Kernel
) -> list[Sample] | None:
    """Measure it, unless that has been done; ``None`` while another process measures.

    Raises:
        Exception: Whatever a kernel raises while it is measured.

    """
    kept = decisions.opened()
    with _lock, kept.store.measuring(PATIENCE) as mine:
        kept.store.refresh()
        samples = removal_recorded(problem, pattern, without, masked)
        if samples is None and mine:
            samples = removal.measure_removal(problem, pattern, without=without, masked=masked)
            name, key = _removal_name(without, masked), removal.class_key(problem, pattern)
            kept.keep_samples(name, key, _place(without, problem), samples)
            for sample in samples:
                logger.info("padding, %s: %s", name, sample)
        return samples


def _removal_name(without: Kernel, masked: Kernel) -> str:
    return f"unpadded:{without.name}/{masked.name}"


def _validate(kernel: Kernel, problem: Problem, *, careful: bool = False) -> ValidationResult:
    kept, variant, place = decisions.opened(), variant_of(problem), _place(kernel, problem)
    first = kernel.needs_child_validation and kept.standing(kernel.name) is None
    if first or (careful and kernel.needs_child_validation):
        result = validate_in_child(kernel.name, variant, _device())
        if result.died:
            kept.keep_standing(kernel.name, result.reason)
        elif result.lasting:
            kept.keep_standing(kernel.name, "")
    else:
        result = validate_here(kernel, variant)
    if result.lasting and not result.died:
        kept.keep_validation(kernel.name, variant, place, result)
    outcome = "validated" if result.ok else f"not used: {result.reason}"
    logger.info("kernel %s for %s: %s", kernel.name, variant.key, outcome)
    return result


def _judged(kernel: Kernel, result: ValidationResult, samples: list[Sample]) -> Finding:
    worst = min(samples, key=lambda sample: (sample.wins, sample.gain))
    ratio = exp(worst.gain)
    wins = all(sample.wins for sample in samples)
    reason = str(worst) if wins or ratio < 1 else f"not beyond doubt faster: {worst}"
    return Finding(
        kernel=kernel,
        reason=reason,
        validation=result,
        samples=tuple(samples),
        gain=worst.gain if wins else 0.0,
    )


def _place(kernel: Kernel, problem: Problem) -> str:
    """Return where ``kernel`` computes, as records tell it apart: the device, the instructions."""
    return f"{_device()} {cpu.instructions(problem.dtype)}" if kernel is cpu else _device()


def _device() -> str:
    return "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
