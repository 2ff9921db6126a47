"""What the integration does to a step, part by part: each has a switch of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Switch:
    """What one of `Options` may be, and what `qwen-mfa run` says about it.

    Attributes:
        values: All of them, the default first.
        help: Of the command's option; where the default is ``True``, of switching it off.

    """

    values: tuple[Any, ...]
    help: str


SWITCHES = {
    "qwen21_steps": Switch(
        values=("auto", "graph", "eager"),
        help="Qwen-Image 2.1: MLX's compiled graph, or eager steps with the native kernel",
    ),
    "precision": Switch(
        values=("host", "bfloat16"),
        help="compute Qwen-Image as mflux does (float32 latents make it float32), or in the "
        "precision of its weights: faster, and the picture changes a little",
    ),
    "fused_blocks": Switch(
        values=("auto", "on", "off"),
        help="compile what surrounds attention: where that is faster, wherever it is right, never",
    ),
    "early_start": Switch(
        values=("auto", "on", "off"),
        help="hand a few blocks at a time to the device, not whole passes (auto: on a GPU)",
    ),
    "skip_negative": Switch(
        values=(True, False),
        help="compute the negative pass at guidance 1, too, where it cancels",
    ),
    "share_modulation": Switch(
        values=(True, False), help="compute each block's modulation in both passes of a step"
    ),
    "share_mask": Switch(
        values=(True, False), help="convert the text mask in each block, as mflux does"
    ),
    "free_modulation": Switch(
        values=(False, True),
        help="compute the modulation of all steps first and let its weights go: a third of the "
        "transformer's memory, for pictures with one schedule",
    ),
    "distributed": Switch(
        values=("auto", "guidance", "heads", "off"),
        help="processes that mlx.launch started as one group compute one pass of a step each; "
        "heads: and share the attention of one pass where that is measured to be faster",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The integration's switches.

    Attributes:
        models: Names of `qwen_mfa.integrations.mflux.MODULES`.
        qwen21_steps: How Qwen-Image 2.1 runs a step, see `steps`.
        fused_blocks: Qwen-Image's blocks as compiled graphs around attention: ``"auto"`` where that
            was validated and measured to be faster, ``"on"`` wherever it is valid, ``"off"`` never.
        early_start: Whether a few blocks at a time are handed to the device, so that it computes
            while Python builds the next ones; ``"auto"``: on a GPU.
        precision: ``"bfloat16"`` computes Qwen-Image's transformer in its weights' precision, where
            mflux computes in float32 because of its float32 latents; ``"host"`` as mflux does.
        skip_negative: Leave out the negative pass where guidance is 1, where it cancels.
        share_modulation: Compute each block's modulation once for both passes of a step.
        share_mask: Convert each text mask once for all blocks and steps.
        free_modulation: Compute the modulation of all steps first, and let its weights go: for a
            process that makes pictures with one schedule, see `freeing`.
        distributed: ``"auto"`` gives each process of a group (``mlx.launch``) one pass of a step,
            where there is a group; ``"guidance"`` insists on it; ``"heads"`` does, too, and lets
            the ranks that have the same pass share its attention, where that is measured to be
            faster; ``"off"`` leaves the group alone.

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
    share_mask: bool = True
    free_modulation: bool = False
    distributed: Literal["auto", "guidance", "heads", "off"] = "auto"

    def __post_init__(self) -> None:
        """Raise `ValueError` for a value that a switch does not have."""
        for name, switch in SWITCHES.items():
            value = getattr(self, name)
            if value not in switch.values:
                known = ", ".join(map(str, switch.values))
                msg = f"{name} must be one of {known}, not {value!r}"
                raise ValueError(msg)

    def __str__(self) -> str:
        switches = [f"{name}={getattr(self, name)}" for name in SWITCHES]
        return f"{', '.join(self.models)} ({', '.join(switches)})"
