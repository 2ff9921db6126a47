"""mflux with our attention: switched on and off without touching mflux's code.

mflux's modules bind MLX's function by name, so that replacing it in ``mx.fast`` would not reach
them. `enable` rebinds the name in the modules of the models asked for, and only there; modules
that are not imported yet follow when they are. `disable` gives every attribute back.

    from qwen_mfa.hosts import mflux

    with mflux.enabled():
        image = model.generate_image(...)
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.errors import HostError
from qwen_mfa.hosts import seams
from qwen_mfa.hosts.imports import Hook
from qwen_mfa.hosts.mflux_mask import remembering
from qwen_mfa.hosts.mflux_modules import (
    MODULES,
    QWEN21_ATTENTION,
    QWEN21_TRANSFORMER,
    QWEN_ATTENTION,
    SUPPORTED,
    SUPPORTED_TEXT,
)
from qwen_mfa.hosts.mflux_steps import POLICIES, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

logger = logging.getLogger("qwen_mfa")

NAME = "scaled_dot_product_attention"
KEYWORDS = {"scale", "mask", "sinks", "force_fused", "stream"}
DEFAULT_MODELS = ("qwen", "qwen21")


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the integration does at this moment.

    Attributes:
        enabled: Whether it is on.
        version: mflux's version, or ``None`` while the integration is off.
        models: The models asked for.
        bound: Attributes that are replaced, as ``module:attribute``.
        waiting: Attributes of modules that are not imported yet.
        refused: Attributes that were left alone when their module was imported, with the reason.

    """

    enabled: bool
    version: str | None = None
    models: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


class _Integration:
    """One enabled integration. Its methods are called with the lock held."""

    def __init__(
        self, version: str, options: tuple[tuple[str, ...], str], all_seams: list[seams.Seam]
    ) -> None:
        self.version = version
        self.options = options
        self.waiting = list(all_seams)
        self.bindings: list[seams.Binding] = []
        self.refused: dict[str, str] = {}
        self.hook = Hook({seam.module for seam in all_seams}, _on_imported)

    def bind_imported(self, just: str | None = None) -> None:
        """Replace the waiting seams of all modules that are imported: all of them, or none.

        Modules whose import is under way wait until it is complete, which the hook tells; ``just``
        names the one whose code has run this moment.
        """
        loaded = {
            seam.module: sys.modules[seam.module]
            for seam in self.waiting
            if seam.module in sys.modules
        }
        ready = [
            seam
            for seam in self.waiting
            if seam.module in loaded
            and (seam.module == just or not seams.is_being_imported(loaded[seam.module]))
        ]
        bindings = [seams.prepare(seam, loaded[seam.module]) for seam in ready]
        seams.apply(bindings)
        self.bindings += bindings
        self.waiting = [seam for seam in self.waiting if seam not in ready]

    def check_not_half_imported(self) -> None:
        """Refuse modules whose import began before the hook was there: nobody would tell."""
        for seam in self.waiting:
            module = sys.modules.get(seam.module)
            if module is not None and seams.is_being_imported(module):
                msg = (
                    f"{seam.module} is being imported right now: enable the integration before "
                    "that import starts, or after it is complete. Nothing was changed."
                )
                raise HostError(msg)

    def status(self) -> Status:
        return Status(
            enabled=True,
            version=self.version,
            models=self.options[0],
            bound=tuple(str(binding.seam) for binding in self.bindings),
            waiting=tuple(str(seam) for seam in self.waiting),
            refused=dict(self.refused),
        )


_lock = threading.RLock()
_integration: _Integration | None = None


def enable(
    models: str | Iterable[str] = DEFAULT_MODELS,
    *,
    qwen21_steps: Literal["auto", "graph", "eager"] = "auto",
) -> Status:
    """Make mflux use `qwen_mfa.scaled_dot_product_attention`; a second time, change nothing.

    Args:
        models: ``"all"``, or names of `mflux_modules.MODULES`. ``"qwen"`` is Qwen-Image and
            Qwen-Image Edit.
        qwen21_steps: How Qwen-Image 2.1 runs a step: ``"graph"`` as mflux compiles it, with MLX's
            attention; ``"eager"`` with the kernel; ``"auto"`` eagerly only where that was measured
            to be never slower (see `qwen_mfa.hosts.mflux_steps`).

    Returns:
        What is in place now.

    Raises:
        HostError: mflux is missing, of a version that was not tested, or not as expected; another
            tool has replaced the same name; or the integration is on with other options. Nothing
            has been changed then.
        ValueError: An unknown model or policy.

    """
    global _integration  # noqa: PLW0603 - one host, one integration
    options = (_chosen(models), _policy(qwen21_steps))
    version = _supported_version()
    all_seams = _existing(_seams(*options), optional=models == "all")
    _check_mlx()
    with _lock:
        if _integration is not None:
            if _integration.options != options:
                msg = (
                    f"the integration is on for {', '.join(_integration.options[0])} (steps: "
                    f"{_integration.options[1]}): call disable() before enabling it differently"
                )
                raise HostError(msg)
            return status()
        integration = _Integration(version, options, all_seams)
        # First the hook: a module that another thread imports just now is not missed.
        integration.hook.install()
        try:
            integration.check_not_half_imported()
            integration.bind_imported()
        except BaseException:
            integration.hook.remove()
            raise
        _integration = integration
        return status()


def disable() -> Status:
    """Give every replaced attribute back; do nothing when the integration is off.

    Raises:
        HostError: Another tool has replaced one of our attributes since. Nothing was changed.

    """
    global _integration  # noqa: PLW0603
    with _lock:
        if _integration is None:
            return Status(enabled=False)
        foreign = [str(b.seam) for b in _integration.bindings if b.foreign()]
        if foreign:
            msg = (
                f"another tool has replaced {', '.join(foreign)} since enable(): undo that first. "
                "Nothing was changed."
            )
            raise HostError(msg)
        _integration.hook.remove()
        for binding in _integration.bindings:
            binding.undo()
        _integration = None
        return Status(enabled=False)


@contextmanager
def enabled(
    models: str | Iterable[str] = DEFAULT_MODELS,
    *,
    qwen21_steps: Literal["auto", "graph", "eager"] = "auto",
) -> Iterator[Status]:
    """Enable for a ``with`` block; inside another one, or when on already, only join it.

    Raises:
        HostError: As `enable` and `disable` do.

    """
    with _lock:
        outermost = not status().enabled
        found = enable(models, qwen21_steps=qwen21_steps)
    try:
        yield found
    finally:
        if outermost:
            disable()


def status() -> Status:
    """Return what is in place."""
    with _lock:
        return Status(enabled=False) if _integration is None else _integration.status()


def _on_imported(module: ModuleType) -> None:
    """Bind a module that has just been imported; leave it as it is when it does not fit."""
    with _lock:
        if _integration is None:
            return
        try:
            _integration.bind_imported(module.__name__)
        except HostError as error:
            mine = [seam for seam in _integration.waiting if seam.module == module.__name__]
            _integration.waiting = [s for s in _integration.waiting if s not in mine]
            _integration.refused |= {str(seam): str(error) for seam in mine}
            logger.warning("mflux goes on with its own attention here: %s", error)


def _chosen(models: str | Iterable[str]) -> tuple[str, ...]:
    if models == "all":
        return tuple(MODULES)
    names = (models,) if isinstance(models, str) else tuple(dict.fromkeys(models))
    unknown = [name for name in names if name not in MODULES]
    if unknown or not names:
        msg = f"unknown models {unknown}: choose from {', '.join(MODULES)}, or 'all'"
        raise ValueError(msg)
    return names


def _policy(qwen21_steps: str) -> str:
    if qwen21_steps not in POLICIES:
        msg = f"qwen21_steps must be one of {', '.join(POLICIES)}, not {qwen21_steps!r}"
        raise ValueError(msg)
    return qwen21_steps


def _supported_version() -> str:
    try:
        version = importlib.metadata.version("mflux")
    except importlib.metadata.PackageNotFoundError:
        msg = f"mflux is not installed for {sys.executable}: pip install 'mflux>=0.24,<0.25'"
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


def _check_mlx() -> None:
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
    if value is seams.ABSENT:
        return f"it has no {NAME}"
    return f"{NAME} is not MLX's function but {value!r}: another tool has replaced it"


def _seams(models: tuple[str, ...], qwen21_steps: str) -> list[seams.Seam]:
    found = [
        seams.Seam(
            module=module,
            attribute=NAME,
            check_source=seams.imports_by_name("mlx.core.fast", NAME, keywords=KEYWORDS),
            check_value=_is_mlx,
            replacement=lambda _: scaled_dot_product_attention,
        )
        for model in models
        for module in MODULES[model]
    ]
    if QWEN_ATTENTION in {seam.module for seam in found}:
        found.append(_mask_seam())
    if QWEN21_ATTENTION in {seam.module for seam in found} and qwen21_steps != "graph":
        found += [
            _step_seam("_image_step_fn", "_image_forward", qwen21_steps),
            _step_seam("_step_fn", "_forward", qwen21_steps),
        ]
    return found


def _mask_seam() -> seams.Seam:
    def check(value: Any) -> str | None:
        return None if isinstance(value, staticmethod) else f"it is not a static method: {value!r}"

    arguments = ("mask", "joint_seq_len", "txt_seq_len")
    return seams.Seam(
        module=QWEN_ATTENTION,
        attribute="QwenAttention._convert_mask_for_qwen",
        check_source=seams.has_method("QwenAttention", "_convert_mask_for_qwen", arguments),
        check_value=check,
        replacement=remembering,
    )


def _step_seam(slot: str, method: str, policy: str) -> seams.Seam:
    def check(value: Any) -> str | None:
        return None if value is seams.ABSENT else f"the class has a {slot} of its own: {value!r}"

    call = ("self", "t", "config", "hidden_states", "encoder_hidden_states")
    return seams.Seam(
        module=QWEN21_TRANSFORMER,
        attribute=f"Qwen21Transformer.{slot}",
        check_source=seams.has_method(
            "Qwen21Transformer",
            "__call__",
            (*call, "encoder_hidden_states_mask"),
            body=f"self.{slot} = mx.compile(self.{method})",
        ),
        check_value=check,
        replacement=lambda _: Step(slot, method, policy),
    )


def _existing(found: list[seams.Seam], *, optional: bool) -> list[seams.Seam]:
    """Hold every seam against mflux's source, before any of it is imported."""
    try:
        spec = importlib.util.find_spec("mflux")  # a top-level name: nothing is imported
    except ValueError:  # sys.modules holds a module without a spec
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    kept = []
    for seam in found:
        inner = Path(*seam.module.split(".")[1:]).with_suffix(".py")
        file = next((folder / inner for folder in folders if (folder / inner).is_file()), None)
        if file is None and optional:
            continue  # a model that this version of mflux does not have yet
        reason = "there is no such module" if file is None else seams.check_source(seam, file)
        if reason:
            msg = (
                f"mflux is not as expected at {seam}: {reason}. Nothing was changed; mflux goes on "
                "with MLX's attention. Please report this with mflux's version."
            )
            raise HostError(msg)
        kept.append(seam)
    return kept
