"""Where the parts of Qwen-Image's step take hold in mflux, and what each looks like there."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from qwen_mfa.integrations import patching
from qwen_mfa.integrations.mflux.blocks import NAMES as BLOCK_ARGUMENTS
from qwen_mfa.integrations.mflux.blocks import Blocks
from qwen_mfa.integrations.mflux.modules import QWEN_BLOCK, QWEN_IMAGE, QWEN_TRANSFORMER
from qwen_mfa.integrations.mflux.passes import NAMES as PASS_ARGUMENTS
from qwen_mfa.integrations.mflux.passes import Passes
from qwen_mfa.integrations.mflux.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.distributed.group import Team
    from qwen_mfa.integrations.mflux.options import Options

GUIDED = ("noise", "noise_negative", "guidance")


class QwenStep:
    """The parts of one enabled integration.

    Attributes:
        passes: A step's two passes.
        blocks: The blocks, once mflux's module is imported.
        together: What computes with other processes, if there are any.

    """

    def __init__(self, options: Options) -> None:
        """Nothing is replaced yet."""
        self.options = options
        self.passes = Passes(options)
        self.blocks: Blocks | None = None
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
        block = "img_mod_params = self.img_mod_linear(self.img_mod_silu(text_embeddings))"
        transformer = "timestep = QwenTransformer._compute_timestep(t, config)"
        guided = "noise = combined * (cond_norm / noise_norm)"
        return [
            _method(QWEN_BLOCK, "QwenTransformerBlock", BLOCK_ARGUMENTS, block, self._bind_blocks),
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

    def _bind_blocks(self, original: Callable[..., Any]) -> Callable[..., Any]:
        if self.blocks is None or self.blocks.original is not original:
            self.blocks = Blocks(original, self.options)
            self.passes.on_picture = self.blocks.begin
        return self.blocks.method()


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
