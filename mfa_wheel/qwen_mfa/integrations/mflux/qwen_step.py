"""Where the parts of Qwen-Image's step take hold in mflux, and what each looks like there."""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from qwen_mfa.integrations import patching
from qwen_mfa.integrations.mflux.blocks import Blocks
from qwen_mfa.integrations.mflux.kinds import OTHERS, QWEN
from qwen_mfa.integrations.mflux.modules import QWEN_IMAGE, QWEN_TRANSFORMER
from qwen_mfa.integrations.mflux.passes import NAMES as PASS_ARGUMENTS
from qwen_mfa.integrations.mflux.passes import Passes
from qwen_mfa.integrations.mflux.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.distributed.group import Team
    from qwen_mfa.integrations.mflux.kinds import Kind
    from qwen_mfa.integrations.mflux.options import Options
    from qwen_mfa.integrations.mflux.trial import Trial

GUIDED = ("noise", "noise_negative", "guidance")


class QwenStep:
    """The parts of one enabled integration.

    Attributes:
        passes: A step's two passes.
        blocks: The blocks, once mflux's module is imported.
        others: Those of other models, by class.
        together: What computes with other processes, if there are any.

    """

    def __init__(self, options: Options) -> None:
        """Nothing is replaced yet."""
        self.options = options
        self.passes = Passes(options)
        self.blocks: Blocks | None = None
        self.others: dict[str, Blocks] = {}
        self.together: Together | None = None

    def join(self, team: Team | None) -> None:
        """Compute the passes with ``team``, or alone."""
        if team is None:
            self.passes.run_both = self.passes.in_turn
            self.together = None
        elif self.together is None or self.together.team is not team:
            self.together = Together(team, self.passes, self.options)

    def seams(self) -> list[patching.Seam]:
        """Return what is to be replaced."""
        transformer = "timestep = QwenTransformer._compute_timestep(t, config)"
        guided = "noise = combined * (cond_norm / noise_norm)"
        return [
            _blocks(QWEN, self._bind_blocks),
            _method(
                QWEN_TRANSFORMER,
                "QwenTransformer",
                PASS_ARGUMENTS,
                transformer,
                self.passes.transformer_method,
            ),
            patching.Seam(
                module=QWEN_IMAGE,
                attribute="QwenImage.compute_guided_noise",
                check_source=patching.has_method(
                    "QwenImage", "compute_guided_noise", GUIDED, body=guided
                ),
                check_value=_is(staticmethod),
                replacement=self.passes.guidance_method,
            ),
        ]

    def seams_of_others(self) -> list[patching.Seam]:
        """Return what is to be replaced of other models: their blocks."""
        chosen = [kind for model in self.options.models for kind in OTHERS.get(model, ())]
        return [_blocks(kind, partial(self._bind_others, kind)) for kind in chosen]

    def trials(self) -> list[Trial]:
        """Return what was found out about blocks of all kinds."""
        every = [*([] if self.blocks is None else [self.blocks]), *self.others.values()]
        return [trial for blocks in every for trial in blocks.trials()]

    def _bind_others(self, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        known = self.others.get(kind.owner)
        if known is None or known.original is not original:
            known = self.others[kind.owner] = Blocks(original, self.options, kind)
        return known.method()

    def _bind_blocks(self, original: Callable[..., Any]) -> Callable[..., Any]:
        if self.blocks is None or self.blocks.original is not original:
            self.blocks = Blocks(original, self.options)
            self.passes.on_picture = self.blocks.begin
        return self.blocks.method()


def _blocks(kind: Kind, replacement: Callable[[Any], Any]) -> patching.Seam:
    return _method(kind.module, kind.owner, kind.names, kind.body, replacement)


def _method(
    module: str,
    owner: str,
    arguments: tuple[str, ...],
    body: str,
    replacement: Callable[[Any], Any],
) -> patching.Seam:
    return patching.Seam(
        module=module,
        attribute=f"{owner}.__call__",
        check_source=patching.has_method(owner, "__call__", ("self", *arguments), body=body),
        check_value=_is(FunctionType),
        replacement=replacement,
    )


def _is(kind: type) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, kind) and "qwen_mfa" not in (getattr(value, "__module__", "") or ""):
            return None
        return f"it is {value!r}, not what mflux has there"

    return check
