"""Switching the integration on and off: one lock, one state, all or nothing."""

from __future__ import annotations

import logging
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_mfa import forks
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import patching
from qwen_mfa.integrations.imports import Hook
from qwen_mfa.integrations.mflux import guard
from qwen_mfa.integrations.mflux.modules import MODULES
from qwen_mfa.integrations.mflux.options import Options
from qwen_mfa.integrations.mflux.qwen_step import QwenStep
from qwen_mfa.integrations.mflux.together import membership

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

logger = logging.getLogger("qwen_mfa")

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
        blocks: What was found out about blocks, one class of them a line.
        bfloat16: How many times as fast ``precision="bfloat16"`` makes a block, measured on one
            that mflux ran in float32 with bfloat16 weights; ``None`` where none was.
        options: All switches; ``None`` while the integration is off.

    Examples:
        >>> mflux.status().enabled
        False

    """

    enabled: bool
    version: str | None = None
    models: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    bfloat16: float | None = None
    options: Options | None = None


class _Integration:
    """One enabled integration. Its methods are called with the lock held."""

    def __init__(self, version: str, step: QwenStep, all_seams: list[patching.Seam]) -> None:
        self.version = version
        self.step = step
        self.options = step.options
        self.waiting = list(all_seams)
        self.bindings: list[patching.Binding] = []
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
            and (seam.module == just or not patching.is_being_imported(loaded[seam.module]))
        ]
        bindings = [patching.prepare(seam, loaded[seam.module]) for seam in ready]
        patching.apply(bindings)
        self.bindings += bindings
        self.waiting = [seam for seam in self.waiting if seam not in ready]

    def check_not_half_imported(self) -> None:
        """Refuse modules whose import began before the hook was there: nobody would tell."""
        for seam in self.waiting:
            module = sys.modules.get(seam.module)
            if module is not None and patching.is_being_imported(module):
                msg = (
                    f"{seam.module} is being imported right now: enable the integration before "
                    "that import starts, or after it is complete. Nothing was changed."
                )
                raise HostError(msg)

    def status(self) -> Status:
        trials = self.step.trials()
        gains = [x.bfloat16 for x in trials if not math.isnan(x.bfloat16)]
        return Status(
            enabled=True,
            version=self.version,
            models=self.options.models,
            bound=tuple(str(binding.seam) for binding in self.bindings),
            waiting=tuple(str(seam) for seam in self.waiting),
            refused=dict(self.refused),
            blocks=tuple(map(str, trials)),
            bfloat16=gains[-1] if gains else None,
            options=self.options,
        )


class _Host:
    """What this process has of the one host.

    Attributes:
        lock: Held while anything here is changed or looked at.
        integration: What is enabled, or ``None``.

    """

    _MAX_STEPS = 16

    def __init__(self) -> None:
        self.lock = forks.reentrant_lock()
        self.integration: _Integration | None = None
        self._steps: dict[Options, QwenStep] = {}

    def step(self, options: Options) -> QwenStep:
        """Return a step, with all that was traced and found out under the same options before."""
        return self._steps.get(options) or QwenStep(options)

    def keep(self, step: QwenStep) -> None:
        """Keep it for `step`, among the latest ones."""
        if len(self._steps) >= self._MAX_STEPS:
            self._steps.pop(next(iter(self._steps)))
        self._steps[step.options] = step


_host = _Host()


def enable(
    models: str | Iterable[str] = DEFAULT_MODELS,
    **switches: Any,
) -> Status:
    """Make mflux use `qwen_mfa.scaled_dot_product_attention`; a second time, change nothing.

    Args:
        models: ``"all"``, or names of `qwen_mfa.integrations.mflux.MODULES`. ``"qwen"`` is
            Qwen-Image and Qwen-Image Edit.
        **switches: The parts of a step, see `Options`: ``qwen21_steps``, ``fused_blocks``,
            ``early_start``, ``precision``, ``skip_negative``, ``share_modulation``,
            ``share_mask``, ``free_modulation``, ``distributed``.

    Returns:
        What is in place now.

    Raises:
        HostError: mflux is missing, of a version that was not tested, or not as expected; another
            tool has replaced the same name; or the integration is on with other options. Nothing
            has been changed then.
        ValueError: An unknown model, or a value that a switch does not have.
        TypeError: An unknown switch.
        DistributedError: A group cannot be joined, or is asked for and is not there.

    Examples:
        >>> mflux.enable(precision="bfloat16").enabled
        True
        >>> mflux.disable().enabled
        False

    """
    options = Options(models=_chosen(models), **switches)
    version = guard.supported_version()
    step = _host.step(options)
    all_seams = guard.fitting(guard.seams_of(step), skip_missing=models == "all")
    guard.check_mlx()
    with _host.lock:
        if _host.integration is not None:
            if _host.integration.options != options:
                msg = (
                    f"the integration is on for {_host.integration.options}: call disable() before "
                    "enabling it differently"
                )
                raise HostError(msg)
            return status()
        team = membership.team(options.distributed)
        step.join(team)
        integration = _Integration(version, step, all_seams)
        # First the hook: a module that another thread imports just now is not missed.
        integration.hook.install()
        try:
            integration.check_not_half_imported()
            integration.bind_imported()
        except BaseException:
            integration.hook.remove()
            raise
        _host.integration = integration
        _host.keep(step)
        return status()


def check() -> str:
    """Return mflux's version if the integration supports it; change nothing.

    Raises:
        HostError: mflux is missing, or of a version that was not tested.

    Examples:
        >>> mflux.check().startswith("0.2")
        True

    """
    return guard.supported_version()


def disable() -> Status:
    """Give every replaced attribute back; do nothing when the integration is off.

    Raises:
        HostError: Another tool has replaced one of our attributes since. Nothing was changed.

    Examples:
        >>> mflux.disable().enabled
        False

    """
    with _host.lock:
        if _host.integration is None:
            return Status(enabled=False)
        foreign = [str(b.seam) for b in _host.integration.bindings if b.foreign()]
        if foreign:
            msg = (
                f"another tool has replaced {', '.join(foreign)} since enable(): undo that first. "
                "Nothing was changed."
            )
            raise HostError(msg)
        _host.integration.hook.remove()
        for binding in _host.integration.bindings:
            binding.undo()
        _host.integration = None
        return Status(enabled=False)


@contextmanager
def enabled(
    models: str | Iterable[str] = DEFAULT_MODELS,
    **switches: Any,
) -> Iterator[Status]:
    """Enable for a ``with`` block; inside another one, or when on already, only join it.

    Raises:
        HostError: As `enable` and `disable` do.

    Examples:
        >>> with mflux.enabled(fused_blocks="off") as status:
        ...     status.options.fused_blocks  # and here pictures are made
        'off'

    """
    with _host.lock:
        outermost = not status().enabled
        found = enable(models, **switches)
    try:
        yield found
    finally:
        if outermost:
            disable()


def step() -> QwenStep | None:
    """Return the parts of Qwen-Image's step that are on; ``None`` while the integration is off.

    Examples:
        >>> with mflux.enabled():
        ...     mflux.step() is not None
        True

    """
    with _host.lock:
        return None if _host.integration is None else _host.integration.step


def status() -> Status:
    """Return what is in place.

    Examples:
        >>> mflux.status().version is None  # while the integration is off
        True

    """
    with _host.lock:
        return Status(enabled=False) if _host.integration is None else _host.integration.status()


def _on_imported(module: ModuleType) -> None:
    """Bind a module that has just been imported; leave it as it is when it does not fit."""
    with _host.lock:
        if _host.integration is None:
            return
        try:
            _host.integration.bind_imported(module.__name__)
        except HostError as error:
            mine = [seam for seam in _host.integration.waiting if seam.module == module.__name__]
            _host.integration.waiting = [s for s in _host.integration.waiting if s not in mine]
            _host.integration.refused |= {str(seam): str(error) for seam in mine}
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
