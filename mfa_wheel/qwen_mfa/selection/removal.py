"""Decides whether padded keys are left out or masked: measured per class and device, like kernels.

What runs for the keys that are left is compared with MLX's masked attention: only what is faster by
more than the noise is done. (Where the user forces a kernel, with that kernel's; native kernels
are not validated for masks that may never reach them.) ``QWEN_MFA_KEEP_PADDING=1`` keeps every
mask, ``0`` leaves padded keys out without measuring.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import exp
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import settings
from qwen_mfa.errors import BackendError
from qwen_mfa.kernels import mlx
from qwen_mfa.selection import choose, session
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qwen_mfa.kernels.base import Call, Kernel
    from qwen_mfa.problem import Problem
    from qwen_mfa.selection.override import Policy
    from qwen_mfa.tally import Tally
    from qwen_mfa.transforms.padding import Part, Pattern
    from qwen_mfa.tuning.measure import Sample

ONLY_HIDES = "the mask only hides padded keys"

_CPU = mx.DeviceType.cpu

logger = logging.getLogger("qwen_mfa")


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What becomes of a mask that only hides padded keys.

    Attributes:
        removed: Whether the keys are left out.
        reason: In words.
        samples: What was measured, if it was.
        final: Whether it stands until something fails.

    """

    removed: bool
    reason: str
    samples: tuple[Sample, ...] = ()
    final: bool = True


def parts_to_compute(
    call: Call, wanted: Policy, may_measure: Callable[[], bool]
) -> tuple[tuple[Part, ...], str] | None:
    """Return which keys each row of the batch is computed with, and why; ``None``: the mask stays.

    Args:
        call: The call, with a mask or without.
        wanted: What the user wants.
        may_measure: Asked before something is measured.

    """
    looks = session.current.looks if looking_may_wait() else None
    parts = padding.visible_parts(call, looks=looks)
    if parts is None:
        return None
    pattern = padding.pattern_of(parts, call.problem.seq_kv)
    found = decide(call.problem, pattern, wanted, may_measure)
    if found.removed:
        return parts, found.reason
    if looks is not None and found.final and isinstance(call.mask, mx.array):
        looks.stays(call.mask)
    return None


def decide(
    problem: Problem,
    pattern: Pattern,
    wanted: Policy | None = None,
    may_measure: Callable[[], bool] = lambda: True,
) -> Removal:
    """Return what becomes of masks of ``pattern``. The steady state is one dictionary look-up.

    Args:
        problem: With the mask.
        pattern: Of the mask.
        wanted: What the user wants; `choose.policy` where the caller has not asked yet.
        may_measure: Asked when it would have to be measured first.

    """
    if wanted is None:
        wanted = choose.policy()
    known = session.current
    key = (problem, pattern, looking_may_wait(), wanted)
    found = known.removals.get(key)
    if found is None:
        generation = known.generation
        found = _decide(problem, pattern, wanted, may_measure)
        if found.final:
            known.keep_removal(key, found, generation)
    return found


def shortener(
    parts: tuple[Part, ...],
    reason: str,
    call: Call,
    wanted: Policy,
    tally: Callable[[str | None, str], Tally],
) -> padding.Shortener | None:
    """Return what computes calls like ``call`` from now on, if all about them is decided.

    Args:
        parts: From `parts_to_compute`.
        reason: From there.
        call: The call, computed once.
        wanted: What the user wants.
        tally: Returns what counts the calls of a kernel (``None``: without their mask), by reason.

    """
    # Of a scale of 0, gradients show the sign, which comparing does not.
    if len(parts) > 1 or call.sinks is not None or not call.has_usual_values or not call.scale:
        return None
    pattern = padding.pattern_of(parts, call.problem.seq_kv)

    def never() -> bool:
        return False

    choice = choose.choose(_without_mask(call.problem, pattern), wanted=wanted, may_measure=never)
    if choice.kernel is not mlx or not choice.final:
        return None
    if not decide(call.problem, pattern, wanted, never).final:
        return None
    counted = (tally(None, reason), tally(mlx.name, choice.reason))
    looks = session.current.looks if looking_may_wait() else None
    hides = padding.contents(call.mask)
    # Since the parts were read, a subscriber or another thread may have written to the mask.
    if hides is None or padding.parts_in(hides, call) != parts:
        return None
    return padding.Shortener(call, parts[0], hides, looks, counted)


def _decide(
    problem: Problem, pattern: Pattern, wanted: Policy, may_measure: Callable[[], bool]
) -> Removal:
    said = settings.current().padding
    if said:
        reason = f"{settings.KEEP_PADDING} says so"
        return Removal(removed=said == settings.REMOVE, reason=f"{ONLY_HIDES}, and {reason}")
    try:
        masked: Kernel = mlx
        if wanted.forced is not None:
            masked = choose.choose(problem, wanted=wanted, may_measure=may_measure).kernel
    except BackendError:
        return Removal(removed=True, reason=f"{ONLY_HIDES}, which the forced kernel does not take")
    left = _without_mask(problem, pattern)
    choice = choose.choose(left, wanted=wanted, may_measure=may_measure)
    from qwen_mfa.selection import candidates  # noqa: PLC0415 - with all that validates and measures

    samples = candidates.removal_recorded(problem, pattern, choice.kernel, masked)
    if samples is None and not (choose.tunes() and may_measure()):
        why = "this is not the time" if choose.tunes() else choose.not_measured()
        reason = f"not measured yet, and {why}" if choose.tunes() else why
        return Removal(removed=False, reason=reason, final=not choose.tunes())
    if samples is None:
        samples = candidates.investigate_removal(problem, pattern, choice.kernel, masked)
    if samples is None:
        return Removal(removed=False, reason="another process is measuring", final=False)
    return _judged(samples, final=choice.final)


def looking_may_wait() -> bool:
    """Whether reading an array may wait for another device than the CPU."""
    return bool(mx.default_device().type is not _CPU)


def _judged(samples: Sequence[Sample], *, final: bool) -> Removal:
    worst = min(samples, key=lambda sample: (sample.wins, sample.gain))
    wins = all(sample.wins for sample in samples)
    least = exp(worst.gain - worst.noise)
    smaller = ", smaller than its class" if worst.reduced else ""
    figures = (
        f"without them it takes {exp(-worst.gain):.2f} of the masked time "
        f"(at most {1 / least:.2f}) at {worst.problem}{smaller}"
    )
    text = f"{ONLY_HIDES}, and {figures}" if wins else f"not beyond doubt faster: {figures}"
    return Removal(removed=wins, reason=text, samples=tuple(samples), final=final)


def _without_mask(problem: Problem, pattern: Pattern) -> Problem:
    """Return what is left to compute; of several parts, the first with most keys stands for all."""
    batch = max(1, problem.batch // pattern.parts)
    keys = problem.seq_kv - pattern.hidden
    return replace(problem, batch=batch, seq_kv=keys, mask="none", mask_shape=())
