"""Chooses a kernel for a problem, remembers the choice, and answers with MLX when one fails."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_mfa.errors import QwenMfaError
from qwen_mfa.kernels import cpu
from qwen_mfa.kernels import mlx as reference

if TYPE_CHECKING:
    import mlx.core as mx

    from qwen_mfa.kernels import Call, Kernel
    from qwen_mfa.problem import Problem

logger = logging.getLogger("qwen_mfa")

# In order of preference; MLX, which takes everything, is not in the list.
CANDIDATES: tuple[Kernel, ...] = (cpu,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What runs for a problem, and why."""

    kernel: Kernel
    reason: str


_choices: dict[Problem, Choice] = {}
_quarantined: dict[str, str] = {}
_lock = threading.Lock()


def choose(problem: Problem) -> Choice:
    """Return the kernel for ``problem``. The steady state is one dictionary look-up."""
    choice = _choices.get(problem)
    if choice is None:
        choice = _choices[problem] = _decide(problem)
    return choice


def _decide(problem: Problem) -> Choice:
    reasons = []
    for kernel in CANDIDATES:
        reason = _quarantined.get(kernel.name) or kernel.refuses(problem)
        if reason is None:
            return Choice(kernel=kernel, reason=f"{kernel.name} takes it")
        reasons.append(f"{kernel.name}: {reason}")
    return Choice(kernel=reference, reason="; ".join(reasons))


def run(kernel: Kernel, problem: Problem, call: Call) -> mx.array:
    """Run ``kernel``; on failure quarantine it for the process and return MLX's result."""
    try:
        return kernel.run(problem, call)
    except QwenMfaError as error:
        _quarantine(kernel, str(error))
        return reference.run(problem, call)


def _quarantine(kernel: Kernel, reason: str) -> None:
    with _lock:
        first = kernel.name not in _quarantined
        _quarantined[kernel.name] = f"failed in this process ({reason})"
        _choices.clear()
    if first:
        logger.warning(
            "kernel %s failed and is not used again in this process; MLX answers instead: %s",
            kernel.name,
            reason,
        )


def reset() -> None:
    """Forget choices and quarantines. Meant for tests."""
    with _lock:
        _choices.clear()
        _quarantined.clear()
