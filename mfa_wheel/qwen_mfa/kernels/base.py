"""What the kernels have in common: the call that they are given, and their interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qwen_mfa.problem import describe

if TYPE_CHECKING:
    import mlx.core as mx

    from qwen_mfa.problem import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The arguments of one call that MLX would take, in its terms, and what they amount to.

    Attributes:
        q: ``[B, Hq, Sq, D]``.
        k: ``[B, Hkv, Skv, D]``.
        v: ``[B, Hkv, Skv, Dv]``.
        scale: Factor on the scores.
        mask: ``None``, ``"causal"`` or an array that broadcasts to ``[B, Hq, Sq, Skv]``.
        sinks: ``None`` or ``[Hq]``.
        stream: Passed on to MLX.
        problem: Describes the arrays.

    Raises:
        ValueError: MLX would not take these arrays.

    """

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    mask: mx.array | str | None = None
    sinks: mx.array | None = None
    stream: mx.Stream | mx.Device | None = None
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        problem = describe(self.q, self.k, self.v, self.mask, self.sinks)
        if problem is None:
            msg = "these arrays are not those of an attention problem"
            raise ValueError(msg)
        object.__setattr__(self, "problem", problem)

    @property
    def has_usual_values(self) -> bool:
        """Whether v is as k, in shape and dtype, so that k tells all of it."""
        return self.v.shape == self.k.shape and self.v.dtype == self.k.dtype

    def arrays(self) -> list[mx.array]:
        """Return the array arguments, in the order q, k, v, mask, sinks, without absent ones."""
        optional = (self.mask, self.sinks)
        present = [x for x in optional if x is not None and not isinstance(x, str)]
        return [self.q, self.k, self.v, *present]


class Repeated(Protocol):
    """A kernel for calls that differ in what q, k and v hold alone; some have one."""

    def run(self, *arrays: mx.array) -> mx.array | None:
        """Compute from evaluated q, k and v; ``None`` where the general way has to see to it."""


class Kernel(Protocol):
    """A way to compute attention.

    Attributes:
        name: What users call it, as in ``QWEN_MFA_BACKEND``.
        roundoff: Unit roundoff of what it keeps between its steps (scores, weights); sums are
            taken in FP32 by all. The error bounds of its validation are made of it.
        needs_child_validation: Whether its first validation may end the process (native
            code, drivers).

    """

    name: str
    roundoff: float
    needs_child_validation: bool

    def refuses(self, problem: Problem) -> str | None:
        """Return why this kernel cannot take ``problem``, in words, or ``None``."""

    def run(self, call: Call) -> mx.array:
        """Compute. The inputs are evaluated already, and the result is ``[B, Hq, Sq, Dv]``.

        Raises:
            RefusedError: It cannot take this call, for a reason that no `Problem` shows.
            QwenMfaError: The kernel failed; its output must not be used.

        """
