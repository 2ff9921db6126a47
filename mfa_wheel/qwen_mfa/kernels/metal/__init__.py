"""The Metal engine as two candidates, which differ in what they keep between their steps.

Importing this package imports no Metal, opens no library and asks no device.

Not part of the public API: what is here may change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem


class MetalKernel:
    """The embedded Metal library with one class of intermediate precision.

    Attributes:
        name: What users call it.
        roundoff: Unit roundoff of scores and weights.
        intermediate: The library's word for the class: ``"fp32"``, or ``"fp16"`` (weights in
            FP16; the library treats ``"bf16"`` alike). Validation and tuning choose between them.
        needs_child_validation: A driver may end the process: the first validation has its own.

    """

    needs_child_validation = True

    def __init__(self, *, name: str, intermediate: str, roundoff: float) -> None:
        self.name = name
        self.intermediate = intermediate
        self.roundoff = roundoff

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot take ``problem`` on this machine, in a sentence, or ``None``."""
        from qwen_mfa.kernels.metal import system  # noqa: PLC0415 - not before it is asked

        elsewhere = system.why_not_macos()
        if elsewhere is not None:
            return elsewhere
        from qwen_mfa.kernels.metal import device, limits  # noqa: PLC0415 - only on a Mac

        return device.refusal() or limits.refusal(problem, self.intermediate)

    def run(self, call: Call) -> mx.array:
        """Compute ``call`` on the GPU; wait for it; return ``[B, H, Sq, D]``.

        Raises:
            NativeError: The library or the GPU reported a failure.
            MetalError: Memory that cannot be used as it must be.

        """
        from qwen_mfa.kernels.metal import execute  # noqa: PLC0415

        return execute.attention(call, self.intermediate)


# FP32 throughout, with the fast exponential of Metal's fast math: a few units in the last place.
accurate = MetalKernel(name="metal", intermediate="fp32", roundoff=2**-21)
# Scores stay FP32 for bfloat16 inputs; the weights are FP16 (11 significant bits).
low = MetalKernel(name="metal-low", intermediate="fp16", roundoff=2**-11)
