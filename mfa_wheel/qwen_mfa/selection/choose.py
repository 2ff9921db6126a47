"""Chooses a kernel by validation and measurement, and answers with MLX when one fails.

A kernel other than MLX's runs only where it does not refuse, was validated
(`qwen_mfa.validation.validate`) and was measured to be faster (`qwen_mfa.tuning.measure`) in this
very environment. What was found is kept (`qwen_mfa.selection.decisions`): nothing is validated or
measured twice. ``QWEN_MFA_TUNE=0`` relies on what is kept, and on MLX for the rest.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from qwen_mfa import forks, settings
from qwen_mfa.errors import BackendError, LibraryError, RefusedError
from qwen_mfa.firstuse import first_use
from qwen_mfa.kernels import mlx, registry
from qwen_mfa.selection import override, session
from qwen_mfa.transforms.autodiff import misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call, Kernel
    from qwen_mfa.problem import Problem
    from qwen_mfa.selection.candidates import Finding
    from qwen_mfa.selection.override import Policy

# Below this many operations an eager kernel's own overhead is all there is to measure.
TINY = 1 << 20

logger = logging.getLogger("qwen_mfa")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What runs for a problem, and why.

    Attributes:
        kernel: The kernel.
        reason: In words.
        findings: What is known of each candidate, in order of preference.
        final: Whether it stands until something fails; otherwise the next call asks again.

    """

    kernel: Kernel
    reason: str
    findings: tuple[Finding, ...] = ()
    final: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a call.

    Attributes:
        result: ``[B, Hq, Sq, Dv]``, the kernel's or MLX's.
        failure: Why it is MLX's; ``None`` when the kernel computed it.

    """

    result: mx.array
    failure: str | None = None


def policy() -> Policy:
    """Return what the user wants here: by `override.use`, or by the environment."""
    return override.of_context.get() or session.current.policy


def choose(
    problem: Problem,
    *,
    wanted: Policy | None = None,
    may_measure: Callable[[], bool] = lambda: True,
) -> Choice:
    """Return the kernel for ``problem``. The steady state is one dictionary look-up.

    Args:
        problem: What is to be computed, on MLX's default device.
        wanted: What the user wants; `policy` where the caller has not asked yet.
        may_measure: Asked when something would have to be validated or measured first. If it
            returns false, MLX's kernel is chosen for this once.

    Raises:
        BackendError: The user forces a kernel that refuses, failed, or is not validated.

    """
    if wanted is None:
        wanted = policy()
    known = session.current
    key = (problem, mx.default_device().type, wanted)
    choice = known.choices.get(key)
    if choice is None:
        generation = known.generation
        choice = _decide(problem, wanted, may_measure)
        if choice.final:
            known.keep(key, choice, generation)
    return choice


def _decide(problem: Problem, wanted: Policy, may_measure: Callable[[], bool]) -> Choice:
    if problem.is_empty or problem.head_dim == 0:
        return Choice(kernel=mlx, reason="there is nothing to compute")
    if wanted.forced == mlx.name:
        return Choice(kernel=mlx, reason=f"{wanted.source} forces it")
    _prepare(problem)
    if wanted.forced is not None:
        return _forced(wanted.forced, problem, wanted, may_measure)
    if problem.flops < TINY:
        return Choice(kernel=mlx, reason=f"it is tiny: below {TINY} operations")
    from qwen_mfa.selection import candidates  # noqa: PLC0415 - with all that validates and measures

    measure = tunes()
    findings = []
    for kernel in registry.others():
        reason = _why_not(kernel, problem, wanted)
        if reason is not None:
            findings.append(candidates.Finding(kernel=kernel, reason=reason))
            continue
        finding = candidates.recorded(kernel, problem)
        if finding is None and measure and may_measure():
            finding = _investigated(kernel, problem)
        if finding is None:
            reason = "not measured yet, and this is not the time" if measure else not_measured()
            finding = candidates.Finding(kernel=kernel, reason=reason, final=not measure)
        findings.append(finding)
    return _best(tuple(findings))


def _prepare(problem: Problem) -> None:
    """Take what a fork of another thread must not interrupt: imports, library, records."""
    with first_use:
        from qwen_mfa.native import library  # noqa: PLC0415 - not for the steady state
        from qwen_mfa.selection import candidates, decisions  # noqa: F401, PLC0415

        with suppress(LibraryError):
            library.load()
        decisions.opened()
        for kernel in registry.others():
            kernel.refuses(problem)


def _best(findings: tuple[Finding, ...]) -> Choice:
    final = all(finding.final for finding in findings)
    winners = [finding for finding in findings if finding.gain > 0]
    if winners:
        best = max(winners, key=lambda finding: finding.gain)
        reason = f"validated, and {best.reason}"
        return Choice(kernel=best.kernel, reason=reason, findings=findings, final=final)
    reason = "; ".join(f"{finding.kernel.name}: {finding.reason}" for finding in findings)
    return Choice(kernel=mlx, reason=reason, findings=findings, final=final)


def _forced(name: str, problem: Problem, wanted: Policy, may_measure: Callable[[], bool]) -> Choice:
    from qwen_mfa.selection import candidates  # noqa: PLC0415 - with all that validates and measures

    kernel = registry.named(name)
    if kernel is None:
        msg = f"{wanted.source} forces kernel {name}, which this version does not have"
        raise BackendError(msg)
    reason = _why_not(kernel, problem, wanted)
    if reason is None:
        result = candidates.validated(kernel, problem)
        if result is None:
            if forks.happened() or not may_measure():
                return Choice(kernel=mlx, reason="not validated yet", final=False)
            result = candidates.validate(kernel, problem)
        if result.ok:
            return Choice(kernel=kernel, reason=f"validated, and {wanted.source} forces it")
        reason = f"it is not validated: {result.reason}"
    msg = (
        f"{wanted.source} forces kernel {name}, which cannot run for {problem}: {reason}. "
        "Unset it, or force another kernel"
    )
    raise BackendError(msg)


def _why_not(kernel: Kernel, problem: Problem, wanted: Policy) -> str | None:
    if kernel.name in wanted.forbidden:
        return f"{wanted.source} forbids it"
    failed = session.current.quarantined.get(kernel.name)
    return failed or kernel.refuses(problem)


def _investigated(kernel: Kernel, problem: Problem) -> Finding:
    from qwen_mfa.selection import candidates  # noqa: PLC0415 - with all that validates and measures

    try:
        return candidates.investigate(kernel, problem)
    except Exception as error:  # noqa: BLE001 - a kernel may fail in any way
        _quarantine(kernel, f"while it was measured: {type(error).__name__}: {error}")
        return candidates.Finding(kernel=kernel, reason=session.current.quarantined[kernel.name])


def run(kernel: Kernel, call: Call) -> Outcome:
    """Run ``kernel``; where it refuses or fails, the result is MLX's.

    What it refuses is this one call. When it fails, it is quarantined for the process.
    """
    try:
        result = kernel.run(call)
        flaw = misfit(call.problem, result)
    except RefusedError as error:
        return Outcome(result=mlx.run(call), failure=f"{kernel.name} refuses this call: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a result
        flaw = str(error) or type(error).__name__
    if flaw is None:
        return Outcome(result=result)
    _quarantine(kernel, flaw)
    return Outcome(result=mlx.run(call), failure=f"{kernel.name}: failed in this process ({flaw})")


def _quarantine(kernel: Kernel, reason: str) -> None:
    if session.current.quarantine(kernel.name, reason):
        from qwen_mfa.selection import decisions  # noqa: PLC0415 - not for the steady state

        decisions.opened().keep_failure(kernel.name, reason)
        logger.warning(
            "kernel %s failed and is not used again in this process; MLX answers instead: %s "
            "(`qwen-mfa doctor` tells more)",
            kernel.name,
            reason,
        )


def tunes() -> bool:
    """Whether anything may be validated and measured in this process."""
    return settings.current().tunes and not forks.happened()


def not_measured() -> str:
    """Say why nothing is measured where `tunes` forbids it."""
    why = "this process was forked" if settings.current().tunes else f"{settings.TUNE}=0"
    return f"not measured yet, and {why}"
