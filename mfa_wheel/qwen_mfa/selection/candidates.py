"""The kernels that may stand in for MLX's, and what is known of each for a problem.

Proofs and measurements happen here, one at a time in a process and in an environment:
other processes wait for the outcome rather than disturb the measurement and repeat it.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa.selection import decisions
from qwen_mfa.selection.decisions import MAX_ATTEMPTS
from qwen_mfa.tuning import measure
from qwen_mfa.validation.child import prove_in_child
from qwen_mfa.validation.validate import Verdict
from qwen_mfa.validation.validate import prove as prove_here
from qwen_mfa.validation.variants import class_of, variant_of

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Kernel
    from qwen_mfa.problem import Problem
    from qwen_mfa.tuning.measure import Sample

# Seconds to wait for another process that measures.
PATIENCE = 60.0

logger = logging.getLogger("qwen_mfa")
_lock = threading.RLock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is known of one kernel for one problem.

    Attributes:
        kernel: The kernel.
        reason: Why it does not run, or how much faster it is; in words.
        verdict: Of its proof, if it came that far.
        samples: What was measured, if it came that far.
        gain: Smallest measured log(MLX / kernel) if it is faster beyond doubt, else 0.
        final: Whether another try would find the same.

    """

    kernel: Kernel
    reason: str
    verdict: Verdict | None = None
    samples: tuple[Sample, ...] = ()
    gain: float = 0.0
    final: bool = True


def recorded(kernel: Kernel, problem: Problem) -> Finding | None:
    """Return what is known without proving or measuring anything, or ``None`` if that is needed."""
    verdict = proved(kernel, problem)
    if verdict is None:
        return None
    if not verdict.ok:
        reason = f"not proved right: {verdict.reason}"
        return Finding(kernel=kernel, reason=reason, verdict=verdict)
    samples = decisions.opened().samples(kernel.name, class_of(problem)[0], _device())
    return None if samples is None else _judged(kernel, verdict, samples)


def proved(kernel: Kernel, problem: Problem) -> Verdict | None:
    """Return the verdict for the variant of ``problem``, if there is one."""
    kept = decisions.opened()
    if kept.standing(kernel.name) is False:
        return Verdict(ok=False, reason=kept.death(kernel.name), died=True)
    return kept.verdict(kernel.name, variant_of(problem), _device())


def prove(kernel: Kernel, problem: Problem) -> Verdict:
    """Prove ``kernel`` for the variant of ``problem``, unless that has been done."""
    with _lock, decisions.opened().store.measuring(PATIENCE) as mine:
        decisions.opened().store.refresh()
        verdict = proved(kernel, problem)
        if verdict is not None:
            return verdict
        if not mine:
            return Verdict(ok=False, reason="another process is proving it", lasting=False)
        return _prove(kernel, problem)


def investigate(kernel: Kernel, problem: Problem) -> Finding:
    """Prove and measure ``kernel`` for the class of ``problem``, unless that has been done.

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
                reason = f"{attempts} times, proving or measuring it crashed or gave no answer"
                return Finding(kernel=kernel, reason=reason)
            careful = death.happened or attempts > 0
            verdict = proved(kernel, problem) or _prove(kernel, problem, careful=careful)
            if not verdict.lasting and not verdict.outside:
                kept.keep_attempts(kernel.name, key, attempts + 1)
            if not verdict.ok:
                reason = f"not proved right: {verdict.reason}"
                return Finding(kernel=kernel, reason=reason, verdict=verdict)
            samples = measure.measure(kernel, (ends[0], ends[1]))
            kept.keep_samples(kernel.name, key, _device(), samples)
            kept.keep_attempts(kernel.name, key, 0)
        for sample in samples:
            logger.info("kernel %s: %s", kernel.name, sample)
        return _judged(kernel, verdict, samples)


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)  # a hook only: nothing runs until a fork


def _prove(kernel: Kernel, problem: Problem, *, careful: bool = False) -> Verdict:
    kept, variant, device = decisions.opened(), variant_of(problem), _device()
    first = kernel.needs_child_proof and kept.standing(kernel.name) is None
    if first or (careful and kernel.needs_child_proof):
        verdict = prove_in_child(kernel.name, variant, device)
        if verdict.died:
            kept.keep_standing(kernel.name, verdict.reason)
        elif verdict.lasting:
            kept.keep_standing(kernel.name, "")
    else:
        verdict = prove_here(kernel, variant)
    if verdict.lasting and not verdict.died:
        kept.keep_verdict(kernel.name, variant, device, verdict)
    outcome = "proved" if verdict.ok else f"not used: {verdict.reason}"
    logger.info("kernel %s for %s: %s", kernel.name, variant.key, outcome)
    return verdict


def _judged(kernel: Kernel, verdict: Verdict, samples: list[Sample]) -> Finding:
    worst = min(samples, key=lambda sample: (sample.wins, sample.gain))
    ratio = exp(worst.gain)
    wins = all(sample.wins for sample in samples)
    reason = str(worst) if wins or ratio < 1 else f"not beyond doubt faster: {worst}"
    return Finding(
        kernel=kernel,
        reason=reason,
        verdict=verdict,
        samples=tuple(samples),
        gain=worst.gain if wins else 0.0,
    )


def _device() -> str:
    return "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
