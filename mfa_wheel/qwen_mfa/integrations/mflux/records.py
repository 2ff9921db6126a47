"""What earlier processes found out about cut blocks here, and whether compiling them is worth it.

Compiling a block's two graphs costs a second or so on the CPU (the system's C++ compiler) and half
a minute on a GPU (NVRTC), once on a machine: MLX keeps the results on disk. A single small picture
never earns that back, many do. So what pictures could have saved is added up, across processes, and
the graphs are compiled as soon as that, and what the picture under way could save, reach the cost:
in the worst case twice the cost of having known from the start.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.integrations.mflux import skeleton
from qwen_mfa.selection import decisions
from qwen_mfa.selection.records import parse

if TYPE_CHECKING:
    from mlx import nn

# Seconds, as measured: 25 to 40 on an H100's host with a cold cache; 1 to 2 with GCC.
COST = {mx.DeviceType.gpu: 30.0, mx.DeviceType.cpu: 2.0}
SHARE = 0.15  # of a block's time that fusing saves, roughly: 0.12 to 0.3 on a GPU


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a record of an outcome may hold."""

    fused: bool
    reason: str
    error: float = nan
    gain: float = nan
    noise: float = nan
    bfloat16: float = nan


class Record:
    """One class of blocks on one device."""

    def __init__(self, block: nn.Module, kind: tuple[Any, ...], size: tuple[int, ...]) -> None:
        """Name the class: the block's structure, dtypes, shapes; ``kind`` of call, ``size``."""
        device = mx.default_device().type
        self._cost = COST[device]
        digest = hashlib.sha256(repr((skeleton.describe(block), kind)).encode()).hexdigest()[:16]
        where = f"{device.name} {digest}"
        self._outcome, self._compiled = f"step {where} {size}", f"compiled {where}"

    def outcome(self) -> dict[str, Any] | None:
        """Return what was decided earlier."""
        found = decisions.opened().store.get(self._outcome)
        return None if parse(_Outcome, found) is None else found

    def keep(self, outcome: dict[str, Any]) -> None:
        """Keep what was decided."""
        decisions.opened().store.put(self._outcome, outcome)

    def pays(self, seconds: float) -> bool:
        """Whether to compile now, for a picture that spends ``seconds`` in such blocks."""
        found = decisions.opened().store.get(self._compiled) or {}
        if found.get("compiled"):
            return True
        before = found.get("missed", 0.0)
        total = (before if isinstance(before, float) else 0.0) + SHARE * seconds
        if total >= self._cost:
            return True
        decisions.opened().store.put(self._compiled, {"missed": total})
        return False

    def keep_compiled(self, seconds: float) -> None:
        """Keep that the graphs were compiled here, in ``seconds``."""
        if not (decisions.opened().store.get(self._compiled) or {}).get("compiled"):
            decisions.opened().store.put(self._compiled, {"compiled": seconds})

    @property
    def cost(self) -> float:
        """Seconds that compiling takes where nothing is compiled yet, roughly."""
        return self._cost
