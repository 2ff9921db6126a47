"""Is this mflux the one that we know? Its version, its source, and what its names are bound to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import patching
from qwen_mfa.integrations.mflux.mask import remembering
from qwen_mfa.integrations.mflux.modules import (
    FLUX_ATTENTION,
    MODULES,
    QWEN21_ATTENTION,
    QWEN21_TRANSFORMER,
    QWEN_ATTENTION,
    SUPPORTED,
    SUPPORTED_TEXT,
    Z_IMAGE_ATTENTION,
)
from qwen_mfa.integrations.mflux.steps import Step
from qwen_mfa.integrations.mflux.tracing import attend

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.mflux.qwen_step import QwenStep

SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch
NAME = "scaled_dot_product_attention"
KEYWORDS = {"scale", "mask", "sinks", "force_fused", "stream"}


def install() -> str:
    """Return the command that installs mflux and leaves MLX as it is.

    On Linux mflux asks for MLX's CUDA 13 backend, which excludes the others.
    """
    if SYSTEM != "linux":
        return 'pip install "mflux>=0.24,<0.25"'
    return (
        'pip install --no-deps "mflux>=0.24,<0.25" && pip install '
        "huggingface_hub tqdm pillow safetensors toml platformdirs transformers piexif"
    )


def supported_version() -> str:
    """Return mflux's version.

    Raises:
        HostError: mflux is not installed, or of a version that was not tested.

    """
    try:
        version = importlib.metadata.version("mflux")
    except importlib.metadata.PackageNotFoundError:
        msg = f"mflux is not installed for {sys.executable}: {install()}"
        raise HostError(msg) from None
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        major, minor = -1, -1
    if not SUPPORTED[0] <= (major, minor) < SUPPORTED[1]:
        msg = (
            f"mflux {version} was not tested with this qwen-mfa (supported: {SUPPORTED_TEXT}): "
            "install a supported version, or a qwen-mfa that knows this one"
        )
        raise HostError(msg)
    return version


def check_mlx() -> None:
    """Raise `HostError` when ``mx.fast`` no longer holds MLX's own function."""
    if _is_mlx(mx.fast.scaled_dot_product_attention) is not None:
        msg = (
            "another tool has replaced mlx.core.fast.scaled_dot_product_attention: undo that "
            "first, so that the two cannot get into each other's way. Nothing was changed."
        )
        raise HostError(msg)


def _is_mlx(value: Any) -> str | None:
    # A compiled function of MLX's; whatever wraps it is a Python object.
    if type(value).__name__ == "nb_func" and getattr(value, "__module__", "") == "mlx.core.fast":
        return None
    if value is patching.ABSENT:
        return f"it has no {NAME}"
    return f"{NAME} is not MLX's function but {value!r}: another tool has replaced it"


def seams_of(step: QwenStep) -> list[patching.Seam]:
    """Return everything that is to be replaced for the models that ``step`` is for."""
    models, qwen21_steps = step.options.models, step.options.qwen21_steps
    found = [
        patching.Seam(
            module=module,
            attribute=NAME,
            check_source=patching.imports_by_name("mlx.core.fast", NAME, keywords=KEYWORDS),
            check_value=_is_mlx,
            replacement=_attention_of(module),
        )
        # FLUX.2's blocks use FLUX's attention.
        for module in dict.fromkeys(module for model in models for module in MODULES[model])
    ]
    if QWEN_ATTENTION in {seam.module for seam in found}:
        found += [_mask_seam(shared=step.options.share_mask), *step.seams()]
    found += step.seams_of_others()
    if QWEN21_ATTENTION in {seam.module for seam in found} and qwen21_steps != "graph":
        found += [
            _step_seam("_image_step_fn", "_image_forward", qwen21_steps),
            _step_seam("_step_fn", "_forward", qwen21_steps),
        ]
    return found


def _attention_of(module: str) -> Callable[[Any], Any]:
    traced = (QWEN_ATTENTION, FLUX_ATTENTION, Z_IMAGE_ATTENTION)
    found = attend if module in traced else scaled_dot_product_attention
    return lambda _: found


def _mask_seam(*, shared: bool) -> patching.Seam:
    def check(value: Any) -> str | None:
        return None if isinstance(value, staticmethod) else f"it is not a static method: {value!r}"

    arguments = ("mask", "joint_seq_len", "txt_seq_len")
    return patching.Seam(
        module=QWEN_ATTENTION,
        attribute="QwenAttention._convert_mask_for_qwen",
        check_source=patching.has_method("QwenAttention", "_convert_mask_for_qwen", arguments),
        check_value=check,
        replacement=partial(remembering, shared=shared),
    )


def _step_seam(slot: str, method: str, policy: str) -> patching.Seam:
    def check(value: Any) -> str | None:
        return None if value is patching.ABSENT else f"the class has a {slot} of its own: {value!r}"

    call = ("self", "t", "config", "hidden_states", "encoder_hidden_states")
    return patching.Seam(
        module=QWEN21_TRANSFORMER,
        attribute=f"Qwen21Transformer.{slot}",
        check_source=patching.has_method(
            "Qwen21Transformer",
            "__call__",
            (*call, "encoder_hidden_states_mask"),
            body=f"self.{slot} = mx.compile(self.{method})",
        ),
        check_value=check,
        replacement=lambda _: Step(slot, method, policy),
    )


def fitting(found: list[patching.Seam], *, skip_missing: bool) -> list[patching.Seam]:
    """Hold every seam against mflux's source, before any of it is imported; return those to use.

    Args:
        found: The patching.
        skip_missing: Leave out modules that this version of mflux does not have.

    Raises:
        HostError: A source is missing or not as expected.

    """
    try:
        spec = importlib.util.find_spec("mflux")  # a top-level name: nothing is imported
    except ValueError:  # sys.modules holds a module without a spec
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    kept = []
    for seam in found:
        inner = Path(*seam.module.split(".")[1:]).with_suffix(".py")
        file = next((folder / inner for folder in folders if (folder / inner).is_file()), None)
        if file is None and skip_missing:
            continue  # a model that this version of mflux does not have yet
        reason = "there is no such module" if file is None else patching.check_source(seam, file)
        if reason:
            msg = (
                f"mflux is not as expected at {seam}: {reason}. Nothing was changed; mflux goes on "
                "with MLX's attention. Please report this with mflux's version."
            )
            raise HostError(msg)
        kept.append(seam)
    return kept
