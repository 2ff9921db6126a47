"""What the integration does to a step, part by part: each has a switch of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CHOICES: dict[str, tuple[Any, ...]] = {
    "qwen21_steps": ("auto", "graph", "eager"),
    "fused_blocks": ("auto", "on", "off"),
    "early_start": ("auto", "on", "off"),
    "precision": ("host", "bfloat16"),
    "skip_negative": (True, False),
    "share_modulation": (True, False),
    "free_modulation": (True, False),
    "distributed": ("auto", "guidance", "off"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The integration's switches.

    Attributes:
        models: Names of `qwen_mfa.integrations.mflux.MODULES`.
        qwen21_steps: How Qwen-Image 2.1 runs a step, see `steps`.
        fused_blocks: Qwen-Image's blocks as compiled graphs around attention: ``"auto"`` where that
            was validated and measured to be faster, ``"on"`` wherever it is valid, ``"off"`` never.
        early_start: Whether each block is handed to the device as soon as its graph is built, so
            that the device computes while Python builds the next one; ``"auto"``: on a GPU.
        precision: ``"bfloat16"`` computes Qwen-Image's transformer in its weights' precision, where
            mflux computes in float32 because of its float32 latents; ``"host"`` as mflux does.
        skip_negative: Leave out the negative pass where guidance is 1, where it cancels.
        share_modulation: Compute each block's modulation once for both passes of a step.
        free_modulation: Compute the modulation of all steps first, and let its weights go: for a
            process that makes pictures with one schedule, see `freeing`.
        distributed: ``"auto"`` gives each process of a group (``mlx.launch``) one pass of a step,
            where there is a group; ``"guidance"`` insists on it; ``"off"`` does not.

    Examples:
        >>> mflux.Options(models=("qwen",)).precision
        'host'

    """

    models: tuple[str, ...]
    qwen21_steps: Literal["auto", "graph", "eager"] = "auto"
    fused_blocks: Literal["auto", "on", "off"] = "auto"
    early_start: Literal["auto", "on", "off"] = "auto"
    precision: Literal["host", "bfloat16"] = "host"
    skip_negative: bool = True
    share_modulation: bool = True
    free_modulation: bool = False
    distributed: Literal["auto", "guidance", "off"] = "auto"

    def __post_init__(self) -> None:
        """Raise `ValueError` for a value that a switch does not have."""
        for name, values in CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                known = ", ".join(map(str, values))
                msg = f"{name} must be one of {known}, not {value!r}"
                raise ValueError(msg)

    def __str__(self) -> str:
        switches = [f"{name}={getattr(self, name)}" for name in CHOICES]
        return f"{', '.join(self.models)} ({', '.join(switches)})"
