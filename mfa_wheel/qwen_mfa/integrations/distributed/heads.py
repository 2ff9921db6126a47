"""The attention of one pass over several ranks: each attends with its share of the heads.

Every rank computes all the rest of a block, so that q, k and v are everywhere and only attention's
result travels: ``B · S · H · D`` elements for each of the blocks. That pays where attention is long
and the link fast, which differs a thousandfold: so it is measured, once for each class of lengths,
and done where it wins. The decision follows from the slowest rank's times, the same on all.

Where two passes are computed at once, ranks of equal parity share one. All ranks gather together,
because MLX's ring cannot split a group, and each takes what belongs to its pass.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import telemetry
from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.errors import DistributedError
from qwen_mfa.validation.variants import half_octave

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.integrations.distributed.group import Team

PART = "heads over ranks"
ROUNDS = 7
MAX_LOST = 1  # of the rounds; with one more, splitting does not win
FLOOR = math.log(1.05)  # splitting must gain more


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all ranks compute at one time.

    Attributes:
        passes: How many passes: rank r computes pass ``r % passes``.
        padding: Rows by which attention of this rank's pass is shorter than the longest one's.

    """

    passes: int = 1
    padding: int = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is done with one class of attention, and why.

    Attributes:
        title: The class, in words.
        split: Whether its heads are split over ranks.
        reason: Why, in words.
        whole: Seconds of one attention by each rank, of the slowest rank; the median of rounds.
        parts: The same of a share of the heads and the exchange.
        same_bits: Whether both gave the same bits on all ranks.

    """

    title: str
    split: bool
    reason: str
    whole: float = math.nan
    parts: float = math.nan
    same_bits: bool = True

    def __str__(self) -> str:
        word = "split" if self.split else "not split"
        bits = "" if self.same_bits else ", not the same bits"
        return f"{word}: {self.reason} ({self.title}{bits})"


class Heads:
    """Splits attention over a team.

    Attributes:
        findings: What was found out so far, by class.
        seconds: Time spent in attention that was split: in this rank's share, and in the exchange.

    """

    def __init__(self, team: Team, limit: Callable[[float], float]) -> None:
        """Split over ``team``.

        Args:
            team: The ranks.
            limit: Returns the seconds to wait for the others, from those since the pass began.

        """
        self.team = team
        self.findings: dict[object, Finding] = {}
        self.seconds = {"attention": 0.0, "exchange": 0.0}
        self._limit = limit
        self._work = Work()
        self._began = time.perf_counter()

    def begin(self, work: Work) -> Callable[..., mx.array] | None:
        """Begin a pass; return what computes its attention, or ``None`` where none is split."""
        self._work, self._began = work, time.perf_counter()
        reason = None
        if self.team.size % work.passes:
            reason = (
                "the number of ranks is odd, and guidance gives the last one nothing of its own"
            )
        elif self.team.size == work.passes:
            reason = "each rank computes a pass of its own"
        if reason is None:
            return self.attend
        telemetry.count_part(PART, f"not split: {reason}")
        return None

    def attend(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | str | None = None,
        **options: Any,
    ) -> mx.array:
        """Compute what `qwen_mfa.scaled_dot_product_attention` does, here or with the others.

        All ranks must call it equally often in a pass, with equal shapes but for the number of
        rows.

        Raises:
            DistributedError: The heads cannot be shared equally, or another rank has ended.

        """
        attention: Callable[..., mx.array] = partial(
            scaled_dot_product_attention, scale=scale, **options
        )
        batch, heads, rows, width = q.shape
        parts = self.team.size // self._work.passes
        if heads % parts:
            self._refuse(heads, parts)
        if k.shape[1] != heads or any(option is not None for option in options.values()):
            telemetry.count_part(PART, "not split: grouped keys, or more than a mask")
            return attention(q, k, v, mask=mask)
        whole = partial(attention, q, k, v, mask=mask)
        split = partial(self._split, attention, q, k, v, mask)
        longest = half_octave(rows + self._work.padding)
        dtype = str(q.dtype).removeprefix("mlx.core.")
        key = (batch, heads, width, dtype, self._work.passes, longest)
        finding = self.findings.get(key)
        if finding is None or finding.split:
            mx.eval(q, k, v)  # what comes before attention is none of its time
        if finding is None:
            title = f"{longest[0]} to {longest[1]} tokens, {heads} heads, {dtype}"
            finding = self.findings[key] = self.find(title, whole, split)
        telemetry.count_part(PART, str(finding))
        return split(self.seconds) if finding.split else whole()

    def find(
        self, title: str, whole: Callable[[], mx.array], split: Callable[[], mx.array]
    ) -> Finding:
        """Measure both ways in turn, all ranks at a time; decide from the slowest rank's times."""
        one, other = whole(), split()  # untimed: kernels are chosen, memory is asked for
        same = self._everyones([float(bool(mx.array_equal(one, other)))])
        same_bits = all(value == 1 for (value,) in same)
        ways = {"whole": whole, "parts": split}
        rounds: list[dict[str, float]] = []
        lost = 0
        while len(rounds) < ROUNDS and lost <= MAX_LOST:
            mine = {}
            for name in list(ways)[:: 1 if len(rounds) % 2 == 0 else -1]:
                self._everyones([0.0])  # start together
                start = time.perf_counter()
                mx.eval(ways[name]())
                mine[name] = time.perf_counter() - start
            told = self._everyones([mine[name] for name in ways])
            slowest = dict(zip(ways, map(max, zip(*told, strict=True)), strict=True))
            rounds.append(slowest)
            lost += slowest["parts"] >= slowest["whole"]
        gain = statistics.median(math.log(each["whole"] / each["parts"]) for each in rounds)
        wins = lost <= MAX_LOST and gain > FLOOR
        return Finding(
            title=title,
            split=wins,
            reason=f"{math.exp(gain):.2f} x as fast" + ("" if wins else " is no gain"),
            whole=statistics.median(each["whole"] for each in rounds),
            parts=statistics.median(each["parts"] for each in rounds),
            same_bits=same_bits,
        )

    def _split(
        self,
        attention: Callable[..., mx.array],
        q: mx.array,
        k: mx.array,
        v: mx.array,
        mask: mx.array | str | None,
        seconds: dict[str, float] | None = None,
    ) -> mx.array:
        """Attend with this rank's heads and gather all: ``[B, H, S, Dv]``, evaluated."""
        start = time.perf_counter()
        passes, padding = self._work.passes, self._work.padding
        batch, heads, rows, _ = q.shape
        place, number = divmod(self.team.rank, passes)
        share = heads // (self.team.size // passes)
        mine = slice(place * share, (place + 1) * share)
        if isinstance(mask, mx.array) and mask.ndim > 2 and mask.shape[-3] == heads > 1:
            mask = mask[..., mine, :, :]
        out = attention(q[:, mine], k[:, mine], v[:, mine], mask=mask)
        out = mx.contiguous(mx.pad(out, [(0, 0), (0, 0), (0, padding), (0, 0)]) if padding else out)
        mx.eval(out)
        computed = time.perf_counter()
        everyones = self.team.gather(out, limit=self._limit(computed - self._began))
        if seconds is not None:
            seconds["attention"] += computed - start
            seconds["exchange"] += time.perf_counter() - computed
        # [ranks, B, H / ranks, S, Dv] of this pass
        joined = mx.moveaxis(everyones[number::passes], 0, 1)
        return joined.reshape(batch, heads, rows + padding, -1)[:, :, :rows]

    def _everyones(self, numbers: list[float]) -> list[list[float]]:
        """Return the numbers of all ranks."""
        limit = self._limit(time.perf_counter() - self._began)
        told: Any = self.team.gather(mx.array(numbers), limit=limit).tolist()
        return [list(each) for each in told]

    def _refuse(self, heads: int, parts: int) -> None:
        possible = ", ".join(
            str(n * self._work.passes) for n in range(2, heads + 1) if heads % n == 0
        )
        msg = (
            f"{heads} heads cannot be shared equally by {parts} ranks: start {possible} processes, "
            "or leave distributed='heads' out"
        )
        self.team.part()
        raise DistributedError(msg)
