"""Classifier-free guidance over two ranks: each computes one pass of a step, then they exchange.

The exchanged noise is all that travels: about 1 MB a step and rank at 1024 x 1024. What every rank
goes on with is the same array, bit for bit the one that a single process would have computed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed import agreement

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.distributed.group import Team

PASSES = 2
# A rank may be slower than another by this factor before it is taken to hang, and by LEAST seconds.
PATIENCE = 20.0
LEAST = 60.0
# Once both have shown how long a step of this picture takes: so many times the slowest one, and a
# third of LEAST.
KNOWN = 2  # steps
PATIENCE_THEN = 10.0


class Pass(Protocol):
    """One pass of the transformer, not computed yet."""

    def array(self) -> mx.array:
        """Compute it: the predicted noise ``[B, S, C]``."""


class Split:
    """Runs the positive and the negative pass of a step on two ranks.

    With more than two ranks, those of equal parity compute the same pass.

    Attributes:
        steps: How many steps were split so far.
        seconds: Time spent in passes of this rank, and in waiting for the others.

    """

    def __init__(self, team: Team, *, least: float = LEAST) -> None:
        """Split over ``team``; a rank that is silent for ``least`` seconds may be taken to hang."""
        self.team = team
        self.steps = 0
        self.seconds = {"passes": 0.0, "waiting": 0.0}
        self._least = least
        self._slowest = 0.0
        self._agreed: object = None
        self._steps_before = 0  # this picture

    def both(
        self, passes: tuple[Pass, Pass], *, latents: mx.array, picture: object,
        facts: Callable[[], dict[str, Any]],
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        """Return both passes' noise, each computed by one rank.

        Args:
            passes: The positive and the negative one.
            latents: What both start from; must be equal on all ranks.
            picture: Identifies the picture under way: with another one, ``facts`` are compared.
            facts: Returns what all ranks must have in common, besides the latents, as JSON values.

        Raises:
            DistributedError: The ranks disagree or have drifted apart, or one of them ended.

        """
        everyones = self._run(
            passes[self.team.rank % PASSES], latents=latents, picture=picture, facts=facts
        )
        return everyones[0], everyones[1]

    def one(
        self, only: Pass, *, latents: mx.array, picture: object, facts: Callable[[], dict[str, Any]]
    ) -> mx.array:
        """Return the noise of a step's only pass, which all ranks compute: what rank 0 has.

        Raises:
            DistributedError: As `both` does.

        """
        return self._run(only, latents=latents, picture=picture, facts=facts)[0]

    def _run(
        self, mine: Pass, *, latents: mx.array, picture: object, facts: Callable[[], dict[str, Any]]
    ) -> mx.array:
        """Compute ``mine``; return what every rank has computed."""
        if picture is not self._agreed:
            agreement.require(self.team, {**facts(), "latents (--seed)": agreement.digest(latents)})
            self._agreed, self._steps_before = picture, self.steps
        start = time.perf_counter()
        noise = mine.array()
        check = agreement.checksum(latents)
        mx.eval(noise, check)
        computed = time.perf_counter()
        limit = self.limit(computed - start)
        checks, everyones = self.team.gather_all([check, noise], limit=limit)
        self._require_no_drift(checks)
        self.count(computed - start, time.perf_counter() - computed)
        return everyones

    def limit(self, own: float) -> float:
        """Return the seconds to wait for the others after a pass that took ``own`` seconds."""
        unknown = self._least + PATIENCE * own
        if self.steps - self._steps_before < KNOWN:
            return unknown
        return min(unknown, self._least / 3 + PATIENCE_THEN * max(self._slowest, own))

    def count(self, own: float, waiting: float) -> None:
        """Count a step by the seconds of its pass here, and of waiting for the others."""
        self.steps += 1
        self.seconds["passes"] += own
        self.seconds["waiting"] += waiting
        self._slowest = max(self._slowest, own + waiting)

    def _require_no_drift(self, checks: mx.array) -> None:
        found: Any = checks.tolist()
        drifted = [str(rank) for rank, each in enumerate(found) if each != found[0]]
        if drifted:
            msg = (
                f"after {self.steps} steps the latents of rank {', '.join(drifted)} are not those "
                "of rank 0 any more: the machines compute differently (other versions of MLX or "
                "of the system?). No picture was made"
            )
            self.team.part()
            raise DistributedError(msg)
