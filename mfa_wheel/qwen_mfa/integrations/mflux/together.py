"""mflux in several processes: each computes one pass of every step (see `distributed.guidance`).

On request those that have the same pass share its attention (see `distributed.heads`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_mfa import telemetry
from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed import agreement, group, guidance
from qwen_mfa.integrations.distributed.heads import Heads, Work
from qwen_mfa.integrations.mflux import tracing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import mlx.core as mx

    from qwen_mfa.integrations.distributed.group import Team
    from qwen_mfa.integrations.mflux.options import Options
    from qwen_mfa.integrations.mflux.passes import Pass, Passes

PART = "guidance over ranks"
NOTHING_TO_SPLIT = (
    "nothing to split: guidance is 1, and every rank computes the whole picture (heads can be "
    "shared: --distributed heads)"
)


class Membership:
    """The team of this process, joined once: MLX has one group a process."""

    def __init__(self) -> None:
        """Nothing is joined before it is asked for."""
        self._asked = False
        self._team: Team | None = None

    def team(self, how: str) -> Team | None:
        """Return the team, or ``None`` where this process is alone or ``how`` is ``"off"``.

        Args:
            how: ``"auto"``, ``"guidance"``, ``"heads"`` or ``"off"``, see `Options`.

        Raises:
            DistributedError: ``how`` insists on a team and there is none, or joining failed.

        """
        if how == "off":
            return None
        if not self._asked:
            self._team = group.join()
            self._asked = True
        if self._team is None and how != "auto":
            msg = (
                f"distributed={how!r} needs two processes or more, and this one was started "
                "alone: start it by mlx.launch -n 2 -- … (docs/distributed.md)"
            )
            raise DistributedError(msg)
        return self._team


membership = Membership()


class Together:
    """Computes the passes of each step with a team.

    Attributes:
        team: The ranks.
        split: What gives each a pass.
        heads: What lets them share the attention of one; ``None`` unless asked for.

    """

    def __init__(self, team: Team, passes: Passes, options: Options) -> None:
        """Take the place of ``passes.in_turn``."""
        self.team = team
        self.split = guidance.Split(team)
        shares = options.distributed == "heads"
        self.heads = Heads(team, self.split.limit) if shares else None
        self._in_turn = passes.in_turn
        self._options = options
        passes.run_both = self.run_both

    def run_both(self, positive: Pass, negative: Pass, scale: float) -> tuple[mx.array, mx.array]:
        """Return both passes' noise, each computed by one rank; see `guidance.Split`."""
        is_single = scale == 1 and self._options.skip_negative
        if is_single and self.heads is None:
            telemetry.count_part(PART, NOTHING_TO_SPLIT)
            return self._in_turn(positive, negative, scale)
        common: dict[str, Any] = {
            "latents": positive.arguments["hidden_states"],
            "picture": positive.arguments["config"],
            "facts": lambda: self._facts(positive, negative, scale),
        }
        if is_single:
            telemetry.count_part("negative passes", "skipped: guidance is 1")
            with self._sharing(positive):
                only = self.split.one(positive, **common)
            return only, only
        with self._sharing(positive, negative):
            found = self.split.both((positive, negative), **common)
        telemetry.count_part(PART, f"split over {self.team.size} ranks")
        return found

    def _sharing(self, *passes: Pass) -> AbstractContextManager[None]:
        """Share the attention of ``passes``, which are computed at one time, where asked for."""
        if self.heads is None:
            return nullcontext()
        texts = [each.arguments["encoder_hidden_states"].shape[1] for each in passes]
        padding = max(texts) - texts[self.team.rank % len(passes)]
        return tracing.elsewhere(self.heads.begin(Work(passes=len(passes), padding=padding)))

    def _facts(self, positive: Pass, negative: Pass, scale: float) -> dict[str, Any]:
        config = positive.arguments["config"]
        return {
            **versions(),
            "precision": self._options.precision,
            "heads": self.heads is not None,
            "picture": f"{config.width} x {config.height}",
            "guidance": float(scale),
            "schedule": agreement.digest(config.scheduler.sigmas),
            "weights": agreement.digest_of_weights(positive.transformer),
            "prompt": agreement.digest(positive.arguments["encoder_hidden_states"]),
            "negative prompt": agreement.digest(negative.arguments["encoder_hidden_states"]),
        }


def versions() -> dict[str, str]:
    """Return the versions that decide what is computed."""
    return {name: importlib.metadata.version(name) for name in ("qwen-mfa", "mlx", "mflux")}


@contextmanager
def quiet_worker() -> Iterator[None]:
    """Let this process compute, but neither print nor write pictures: rank 0 does.

    Messages of errors that end the block are printed as ever, by whoever catches them.
    """
    image_util: Any = importlib.import_module("mflux.utils.image_util").ImageUtil
    pillow: Any = importlib.import_module("PIL.Image").Image

    def saves_nothing(*_: Any, **__: Any) -> None:
        return

    kept = [
        (image_util, "save_image", image_util.__dict__["save_image"]),
        (pillow, "save", pillow.__dict__["save"]),
    ]
    streams = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        image_util.save_image = staticmethod(saves_nothing)
        pillow.save = saves_nothing
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for owner, name, value in kept:
                setattr(owner, name, value)
