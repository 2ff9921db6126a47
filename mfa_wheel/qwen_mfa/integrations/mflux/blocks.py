"""A block of mflux: the host's own, or cut at its attention where that is faster.

For each device, structure, dtype and class of sizes, the first call compares the cut block with
the host's own (see `trial`); the next ones run either in turn, timed in pairs. All of them give
valid results, so that the steps under way lose nothing but the waiting between blocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks, telemetry
from qwen_mfa.integrations.mflux import modulation, skeleton
from qwen_mfa.integrations.mflux.cut import CutError, Halves
from qwen_mfa.integrations.mflux.kinds import QWEN
from qwen_mfa.integrations.mflux.mask import hides_nothing
from qwen_mfa.integrations.mflux.records import Record
from qwen_mfa.integrations.mflux.tracing import elsewhere
from qwen_mfa.integrations.mflux.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx import nn

    from qwen_mfa.integrations.mflux.kinds import Kind
    from qwen_mfa.integrations.mflux.options import Options

PART = "fused blocks"
MAX_STRUCTURES = 16
MAX_PLANS = 64
# A device that is told of every block's work by itself gets little at a time: 152 ms a step at
# 512 x 512 on an H200, where 8 at once take 106, 15 take 134, and all at the end 137.
START_EVERY = 8


@dataclass(kw_only=True)
class Plan:
    """How blocks of one structure and one set of shapes run."""

    halves: Halves
    trial: Trial
    validated: bool = False


class Blocks:
    """Stands behind the ``__call__`` of a class of blocks, each time the integration is on."""

    def __init__(self, original: Callable[..., Any], options: Options, kind: Kind = QWEN) -> None:
        """Stand for ``original``, the host's method of ``kind``."""
        self.original = original
        self.options = options
        self.kind = kind
        self._handed_on = {**kind.handed_on, **(modulation.TOKENS if kind.modulated else {})}
        self._lock = forks.reentrant_lock()
        self._structures: list[skeleton.Structure] = []
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._trials: dict[tuple[object, ...], Trial] = {}
        # How many of them the picture under way still has to run: Qwen-Image's passes say so.
        self.ahead = kind.ahead
        self._runs = 0
        self._order = itertools.count()

    def method(self) -> Callable[..., Any]:
        """Return what is put in the class."""
        kind = self.kind

        def __call__(block: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            return self.run(block, {**dict(zip(kind.names, args, strict=False)), **kwargs})

        return __call__

    def trials(self) -> list[Trial]:
        """Return what was found out so far."""
        with self._lock:
            return list(self._trials.values())

    def begin(self, blocks: int) -> None:
        """Begin a picture with so many blocks to run: what did not pay before may pay now."""
        with self._lock:
            self.ahead = blocks
            for trial in self._trials.values():
                trial.reopen()

    def run(self, block: nn.Module, arguments: dict[str, Any]) -> Any:
        """Compute the block: text and image ``[B, S, dim]``, as the host's returns them."""
        if self.kind.modulated:
            modulation.show(arguments)
        else:
            self._count()
        plan, parameters = None, None
        if self.options.fused_blocks != "off":
            arguments |= {
                name: None for name in self.kind.masks if hides_nothing(arguments.get(name))
            }
            bare = self._bare(block)
            parameters, structure = skeleton.read(bare)
            plan = self._plan(structure, bare, arguments)
        if plan is None:
            telemetry.count_part(PART, "as mflux runs them: switched off, or nothing that fits")
            result = self.by_host(block, arguments)
        elif plan.trial.running:
            result = plan.trial.run(self, plan, block, arguments)
        elif plan.trial.fused and (plan.validated or self._validate(plan, block, arguments)):
            telemetry.count_part(PART, "fused")
            result = self.cut(plan, block, arguments, parameters)
        else:
            telemetry.count_part(PART, f"as mflux runs them: {plan.trial.reason}")
            result = self.by_host(block, arguments)
        if self._starts_early() and next(self._order) % START_EVERY == 0:
            _start(result)
        return result

    def _starts_early(self) -> bool:
        wanted = self.options.early_start
        is_gpu = mx.default_device().type == mx.DeviceType.gpu
        return wanted == "on" or (wanted == "auto" and is_gpu)

    def by_host(
        self,
        block: nn.Module,
        arguments: dict[str, Any],
        change: Callable[[mx.array], mx.array] | None = None,
    ) -> Any:
        """Run the host's own code, with this step's modulation where there is one.

        ``change`` is applied to that modulation, for trials with other inputs.
        """
        if not (self.kind.modulated and modulation.is_shared()):
            return self.original(block, **arguments)
        given = modulation.of(block, arguments)
        if change is not None:
            given = {name: change(value) for name, value in given.items()}
        stand_in = skeleton.shallow(block)
        dict.update(stand_in, modulation.stubs(given))
        known = {
            name: token
            for name, token in modulation.TOKENS.items()
            if arguments.get(name) is not None
        }
        return self.original(stand_in, **{**arguments, **known})

    def cut(
        self,
        plan: Plan,
        block: nn.Module,
        arguments: dict[str, Any],
        parameters: list[mx.array] | None = None,
    ) -> Any:
        """Run both halves with the block's parameters.

        Raises:
            CutError: The block cannot be cut.

        """
        if parameters is None:
            parameters, _ = skeleton.read(self._bare(block))
        given = modulation.of(block, arguments) if self.kind.modulated else {}

        def convert(q: mx.array, _k: mx.array) -> Any:  # Qwen-Image's mask is handed on
            mask = arguments["encoder_hidden_states_mask"]
            text = arguments["encoder_hidden_states"].shape[1]
            return block["attn"]._convert_mask_for_qwen(mask, q.shape[2], text)  # noqa: SLF001

        inputs = {k: v for k, v in arguments.items() if k not in self._handed_on and v is not None}
        return plan.halves(parameters, given, inputs, convert)

    def _bare(self, block: nn.Module) -> Any:
        """Return what of ``block`` the halves compute: its modulation they are given."""
        return modulation.without(block) if self.kind.modulated else block

    def _plan(
        self, structure: skeleton.Structure, block: nn.Module, arguments: dict[str, Any]
    ) -> Plan | None:
        """Return how a block of ``structure`` runs, of which ``block`` is one, as `_bare`."""
        streams = [arguments[name] for name in self.kind.streams]
        hidden, text = streams[0], streams[-1]
        number = self._structure(structure)
        if number is None:
            return None
        present = tuple(arguments.get(name) is not None for name in self.kind.names)
        device = mx.default_device().type
        kind = (number, hidden.dtype, text.dtype, present, device)
        key: tuple[object, ...] = (*kind, hidden.shape, text.shape)
        found = self._plans.get(key)
        if found is not None:
            return found
        if not self._fits(arguments):
            return None
        with self._lock:
            size = (hidden.shape[0], (hidden.shape[1] - 1).bit_length())
            # Whatever the first block of a step gets text in, most blocks get it as images.
            wide = (number, hidden.dtype, present, device, size)
            trial = self._trials.get(wide)
            if trial is None:
                dtype = str(hidden.dtype).removeprefix("mlx.core.")
                record = Record(block, (dtype, present), size)
                title = f"{dtype}, up to {1 << size[1]} image tokens"
                if self.kind.title:
                    title = f"{self.kind.title}, {title}"
                trial = Trial(self.options, title, record)
                self._trials[wide] = trial
            static = {
                name: None if value is None else self._handed_on[name]
                for name, value in arguments.items()
                if name in self._handed_on or value is None
            }
            stubs = modulation.stubs if self.kind.modulated else _no_stubs
            halves = Halves(self.original, block, stubs, static)
            if len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            return self._plans.setdefault(key, Plan(halves=halves, trial=trial))

    def _count(self) -> None:
        """Take so many runs for another picture: what did not pay before may pay now."""
        self._runs += 1
        if self._runs % self.kind.ahead == 0:
            self.begin(self.kind.ahead)

    def _fits(self, arguments: dict[str, Any]) -> bool:
        """Whether all that the block computes from is arrays (no cache of keys, for example)."""
        return all(
            name in self._handed_on or _is_arrays(value)
            for name, value in arguments.items()
            if value is not None
        )

    def _structure(self, structure: skeleton.Structure) -> int | None:
        for number, known in enumerate(self._structures):
            if known == structure:
                return number
        with self._lock:
            if len(self._structures) >= MAX_STRUCTURES:
                return None
            self._structures.append(structure)
            return len(self._structures) - 1

    def _validate(self, plan: Plan, block: nn.Module, arguments: dict[str, Any]) -> bool:
        """Run the halves once to their end: what cannot be compiled here shows now, not later."""
        try:
            with elsewhere(None):
                mx.eval(self.cut(plan, block, arguments))
        except (CutError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            plan.trial.refuse(error)
            return False
        plan.validated = True
        plan.trial.record.keep_compiled(0.0)
        return True


def _is_arrays(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_arrays, value))
    return type(value) is mx.array


def _no_stubs(_: dict[str, mx.array]) -> dict[str, Any]:
    return {}


def _start(result: Any) -> None:
    try:
        mx.async_eval(result)
    except (RuntimeError, ValueError):  # inside mx.compile or mx.vmap: the caller's graph
        return
    telemetry.count_part("early start", "starts")
