"""The group of processes that a launcher started, and what they tell each other."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed.watchdog import watching, watching_from_outside

if TYPE_CHECKING:
    from collections.abc import Iterator

# What launchers leave in the environment of each process: mlx.launch (ring, jaccl, NCCL), Open MPI
# and MPICH. Without one of these nothing is joined: MLX would look for libraries and peers.
LAUNCHED_BY = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
JOIN_LIMIT = 120.0  # seconds for all to appear; weights are loaded later
PART_LIMIT = 10.0  # seconds for a last word of ranks that failed together
END_LIMIT = 300.0  # seconds until the slowest has decoded its picture
TELL_LIMIT = 600.0  # seconds until the slowest has loaded its weights and encoded its prompt


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes that make a picture together.

    Attributes:
        group: MLX's group.
        rank: This process, from 0.
        size: How many there are; at least 2.
        names: Where each rank runs, as ``host (process id)``.

    """

    group: mx.distributed.Group = field(repr=False)
    rank: int
    size: int
    names: tuple[str, ...]

    def others(self) -> str:
        """Name the other ranks, for messages."""
        ranks = [f"rank {r} on {self.names[r]}" for r in range(self.size) if r != self.rank]
        return ranks[0] if len(ranks) == 1 else "one of " + ", ".join(ranks)

    def gather(self, array: mx.array, *, limit: float) -> mx.array:
        """Return every rank's ``array``, along a new first axis, evaluated.

        Args:
            array: Of one shape and dtype on all ranks; evaluated.
            limit: Seconds to wait for the others. Past it this process ends.

        Raises:
            DistributedError: Another rank has ended, or the connection to it.

        """
        return self.gather_all([array], limit=limit)[0]

    def gather_all(self, arrays: list[mx.array], *, limit: float) -> list[mx.array]:
        """Do what `gather` does for several arrays, waiting once.

        Raises:
            DistributedError: As `gather` does.

        """
        with self._together("waiting", limit):
            everyones = [mx.distributed.all_gather(x[None], group=self.group) for x in arrays]
            mx.eval(everyones)
        return everyones

    def tell(self, facts: dict[str, Any], *, limit: float = TELL_LIMIT) -> list[dict[str, Any]]:
        """Exchange JSON objects; return those of all ranks, in order.

        Raises:
            DistributedError: As `gather` does.

        """
        text = json.dumps(facts).encode()
        sizes: Any = self.gather(mx.array([len(text)], mx.int32), limit=limit).flatten().tolist()
        padded = text.ljust(max(sizes))
        everyones: Any = self.gather(mx.array(list(padded), mx.uint8), limit=limit).tolist()
        return [json.loads(bytes(row)[:size]) for row, size in zip(everyones, sizes, strict=True)]

    def part(self, *, limit: float | None = None) -> None:
        """Wait for the others before this process ends, so that none loses a message under way.

        Args:
            limit: Seconds to wait, `PART_LIMIT` by default. Past it this process ends.

        """
        with suppress(DistributedError):
            self.gather(mx.zeros(1), limit=PART_LIMIT if limit is None else limit)

    @contextmanager
    def _together(self, doing: str, limit: float) -> Iterator[None]:
        silent = (
            f"{self.others()} gave no sign of life for {limit:.0f} s: it hangs, or the network "
            f"does. Rank {self.rank} ends; start all of them again"
        )
        try:
            with watching(silent, limit):
                yield
        except RuntimeError as error:  # what MLX raises when a connection breaks
            msg = (
                f"{self.others()} has ended, or cannot be reached any more, while rank "
                f"{self.rank} was {doing} for it ({error}). Its own message says why"
            )
            raise DistributedError(msg) from error


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return any(os.environ.get(name) for name in LAUNCHED_BY)  # noqa: TID251 - launchers' own


def join(*, limit: float = JOIN_LIMIT) -> Team | None:
    """Join the group that this process was started for; ``None`` where it is alone.

    Args:
        limit: Seconds for all to appear. Past it this process ends with a message.

    Raises:
        DistributedError: MLX cannot make the group.

    """
    if not is_launched():
        return None
    silent = (
        f"the other processes did not appear within {limit:.0f} s: is each host reachable from "
        "each other one (firewall, host file), and does each start?"
    )
    try:
        with watching_from_outside(silent, limit):
            group = mx.distributed.init()
            team = Team(group=group, rank=group.rank(), size=group.size(), names=())
            if team.size < 2:
                return None
            team = replace(team, names=("a host not known yet",) * team.size)
    except (RuntimeError, ValueError) as error:
        msg = f"MLX cannot join the group that this process was started for: {error}"
        raise DistributedError(msg) from error
    told = team.tell({"name": f"{socket.gethostname()} (process {os.getpid()})"}, limit=limit)
    return replace(team, names=tuple(str(facts["name"]) for facts in told))
