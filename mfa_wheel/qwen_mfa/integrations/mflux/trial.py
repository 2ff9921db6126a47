"""Is a cut block right, and is it faster? Found out on the first blocks of the first step.

Right: of 16-bit blocks, the error against a float32 run of the host's own block is at most
`WORSE` times the host's. A float32 block has no better reference; there the difference from the
host's may be at most `SPREAD` times what one unit in the last place of the inputs spreads to, or
`TINY`, where products that round their inputs swallow that unit.

Faster: host and cut run in turn, on blocks of equal shapes that follow each other, each pair in
the other order; the median of log(host / cut) must exceed its noise, as kernels are chosen by
(`tuning`).
"""

from __future__ import annotations

import math
import statistics
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from qwen_mfa import telemetry
from qwen_mfa.integrations.mflux import modulation, skeleton
from qwen_mfa.integrations.mflux.cut import CutError
from qwen_mfa.integrations.mflux.tracing import elsewhere

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwen_mfa.integrations.mflux.blocks import Blocks, Plan
    from qwen_mfa.integrations.mflux.options import Options
    from qwen_mfa.integrations.mflux.records import Record

WORSE = 1.5
SPREAD = 8.0
TINY = 2**-20
COLD = 5.0  # seconds; more than that was compiling
PAIRS, MAX_PAIRS = 7, 20
FLOOR = 0.01  # a cut must gain more than one percent
FAILURES = (CutError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)


class Trial:
    """One class of blocks: under trial, then fused or not.

    Attributes:
        title: The class, in words.
        running: Whether it is still to be found out.
        fused: The outcome.
        reason: Why, in words.
        error: Error or difference of the cut, relative, and ``allowed``: how much is right.
        cold: Seconds that the first call of the cut took, compilation included.
        bfloat16: How many times as fast the host's block is with bfloat16 inputs, where its weights
            are bfloat16 and its inputs float32; NaN elsewhere.

    """

    def __init__(self, options: Options, title: str, record: Record) -> None:
        """Start a trial, or begin with what is on record.

        With blocks forced on, only whether they are right is tried.
        """
        self.title, self.record = title, record
        self.running, self.fused, self.reason = True, False, "under trial"
        self.error = self.allowed = self.cold = math.nan
        self.gain = self.noise = self.bfloat16 = math.nan
        self._forced = options.fused_blocks == "on"
        self._logs: list[float] = []
        # By shapes, which differ between a step's passes: a pair is of equal ones.
        self._firsts: dict[object, tuple[bool, float]] = {}
        self._postponed = False
        known = None if self._forced else record.outcome()
        if known is not None:
            self.running, self.fused = False, known["fused"]
            self.reason = f"{known['reason']}, on record"
            self.bfloat16 = known.get("bfloat16", math.nan)

    def __str__(self) -> str:
        word = "fused" if self.fused else "as mflux runs them"
        return f"{self.title}: {word} ({self.reason})"

    def reopen(self) -> None:
        """Try again, for another picture, what did not pay for one before."""
        if self._postponed:
            self.running, self._postponed = True, False

    def refuse(self, error: BaseException | str) -> None:
        """End with the host's own block."""
        self.running, self.fused = False, False
        text = str(error).strip().splitlines() or [type(error).__name__]
        self.reason = f"it cannot be cut: {text[0][:200]}"

    def run(self, blocks: Blocks, plan: Plan, block: nn.Module, arguments: dict[str, Any]) -> Any:
        """Compute the block while finding out more; fall back to the host's own on any failure."""
        try:
            mx.eval([v for v in arguments.values() if v is not None and not isinstance(v, int)])
        except FAILURES:  # inside mx.compile or mx.vmap: nothing can be found out there
            return blocks.by_host(block, arguments)
        if not plan.validated:
            return self._validate(blocks, plan, block, arguments)
        return self._timed(blocks, plan, block, arguments)

    def _validate(
        self, blocks: Blocks, plan: Plan, block: nn.Module, arguments: dict[str, Any]
    ) -> Any:
        telemetry.count_part("fused blocks", "validated")
        start = time.perf_counter()
        own = blocks.by_host(block, arguments)
        mx.eval(own)
        picture = (time.perf_counter() - start) * blocks.ahead
        with elsewhere(None):  # what follows only compares: other processes have no part in it
            return self._compared(blocks, plan, block, arguments, own, picture)

    def _compared(
        self,
        blocks: Blocks,
        plan: Plan,
        block: nn.Module,
        arguments: dict[str, Any],
        own: Any,
        picture: float,
    ) -> Any:
        """Hold the cut against ``own``, if the picture's seconds pay for it; return ``own``."""
        # MLX compiles products with quantised weights on first use, for each precision: many
        # seconds on a GPU with a cold cache, which advice alone is not worth.
        dear = any(x.dtype == mx.uint32 for x in skeleton.read(block)[0])
        if not dear:
            self._measure_bfloat16(blocks, block, arguments, own)
        if not self._forced and math.isnan(self.cold) and not self.record.pays(picture):
            self._postpone()
            return own
        self._measure_bfloat16(blocks, block, arguments, own)
        try:
            start = time.perf_counter()
            cut = blocks.cut(plan, block, arguments)
            mx.eval(cut)
            seconds = time.perf_counter() - start
            if math.isnan(self.error):
                self.cold = seconds
                self.record.keep_compiled(seconds)
                self.error, self.allowed = compare(blocks, block, arguments, own, cut)
        except FAILURES as error:
            self.refuse(error)
            return own
        if not self.error <= self.allowed:
            self.refuse(f"its error is {self.error:.1e} where {self.allowed:.1e} is allowed")
            return own
        plan.validated = True
        if self._forced:
            self._decide(fused=True, reason="asked for")
        return own

    def _measure_bfloat16(
        self, blocks: Blocks, block: nn.Module, arguments: dict[str, Any], own: Any
    ) -> None:
        if blocks.kind.modulated and math.isnan(self.bfloat16) and own[0].dtype == mx.float32:
            self.bfloat16 = _gain_of_bfloat16(blocks, block, arguments)

    def _timed(
        self, blocks: Blocks, plan: Plan, block: nn.Module, arguments: dict[str, Any]
    ) -> Any:
        streams = [arguments[name] for name in blocks.kind.streams]
        shapes = tuple((x.shape, x.dtype) for x in streams)
        first = self._firsts.pop(shapes, None)
        fused = len(self._logs) % 2 == 1 if first is None else not first[0]
        telemetry.count_part("fused blocks", "timed")
        if blocks.kind.modulated and modulation.is_shared():
            mx.eval(modulation.of(block, arguments))  # both ways have it for nothing then
        start = time.perf_counter()
        way = partial(blocks.cut, plan) if fused else blocks.by_host
        result = way(block, arguments)
        mx.eval(result)
        seconds = time.perf_counter() - start
        if first is None:
            self._firsts[shapes] = (fused, seconds)
            return result
        host, cut = (first[1], seconds) if fused else (seconds, first[1])
        self._logs.append(math.log(host / cut))
        self._judge()
        return result

    def _judge(self) -> None:
        logs = sorted(self._logs)
        if len(logs) < PAIRS:
            return
        self.gain = statistics.median(logs)
        # The sign test's bound: the median exceeds this one but for a chance below 1 %.
        self.noise = max(FLOOR, self.gain - logs[_rank(len(logs))])
        if self.gain > self.noise:
            self._decide(fused=True, reason=f"{math.exp(self.gain):.2f} x as fast")
        elif self.gain <= 0 or len(logs) >= MAX_PAIRS:
            self._decide(fused=False, reason=f"{math.exp(self.gain):.2f} x as fast is no gain")

    def _decide(self, *, fused: bool, reason: str) -> None:
        if self.cold > COLD:
            reason += f", after {self.cold:.0f} s of compiling, once on this machine"
        self.running, self.fused, self.reason = False, fused, reason
        if not self._forced:
            names = ("error", "gain", "noise", "bfloat16")
            figures = {name: getattr(self, name) for name in names}
            kept = {name: value for name, value in figures.items() if not math.isnan(value)}
            self.record.keep({"fused": fused, "reason": reason, **kept})

    def _postpone(self) -> None:
        self.running, self.fused, self._postponed = False, False, True
        self.reason = (
            f"compiling takes about {self.record.cost:.0f} s once on this machine, which pictures "
            "like this one have not earned yet"
        )


def compare(
    blocks: Blocks, block: nn.Module, arguments: dict[str, Any], own: Any, cut: Any
) -> tuple[float, float]:
    """Return the cut's error, and what is allowed, relative and root mean square."""
    own, cut = _listed(own), _listed(cut)
    if any(x.dtype != y.dtype or x.shape != y.shape for x, y in zip(own, cut, strict=True)):
        msg = "its results have other shapes or dtypes"
        raise CutError(msg)
    if own[0].dtype == mx.float32:
        nudged = blocks.by_host(block, _map_arrays(blocks, _nudge, arguments), _nudge)
        return _distance(cut, own), max(TINY, SPREAD * _distance(_listed(nudged), own))
    if blocks.kind.modulated and modulation.is_shared():
        modulation.of(block, arguments)  # by the block's own weights; the copy is no block's
    wide = skeleton.copy(block)
    skeleton.fill(wide, block, iter([_widened(x) for x in skeleton.read(block)[0]]))
    _dequantise(wide)
    with modulation.as_of(block, wide) if blocks.kind.modulated else nullcontext():
        found = blocks.by_host(wide, _map_arrays(blocks, _widened, arguments), _widened)
    reference = _listed(found)
    return _distance(cut, reference), WORSE * _distance(own, reference)


def _gain_of_bfloat16(blocks: Blocks, block: nn.Module, arguments: dict[str, Any]) -> float:
    """Time the host's block as it is called, and with inputs of its weights' precision."""
    if not any(x.dtype == mx.bfloat16 for x in skeleton.read(block)[0]):
        return math.nan
    narrow = _map_arrays(blocks, _narrowed, arguments)
    mx.eval([value for value in narrow.values() if isinstance(value, mx.array)])
    mx.eval(blocks.by_host(block, narrow, _narrowed))  # whatever is compiled on first use
    seconds = []
    for these, change in ((arguments, None), (narrow, _narrowed)):
        start = time.perf_counter()
        mx.eval(blocks.by_host(block, these, change))
        seconds.append(time.perf_counter() - start)
    return seconds[0] / seconds[1]


def _map_arrays(blocks: Blocks, function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    changed = blocks.kind.computed_from
    return {
        name: tree_map(function, value) if name in changed and value is not None else value
        for name, value in arguments.items()
    }


def _listed(results: Any) -> Sequence[mx.array]:
    """Return a block's results as a sequence, also where it has one alone."""
    return (results,) if isinstance(results, mx.array) else results


def _widened(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x


def _narrowed(x: mx.array) -> mx.array:
    return x.astype(mx.bfloat16)


def _dequantise(module: Any) -> None:
    """Put plain layers where ``module`` has quantised ones: the same function of float32 inputs.

    Only the reference runs in float32. Its quantised products would be compiled for it alone.
    """
    children = module.items() if isinstance(module, dict) else enumerate(module)
    for name, item in list(children):
        if type(item) is nn.QuantizedLinear:
            plain = nn.Linear(1, 1, bias=False)
            plain.weight = mx.dequantize(
                item.weight,
                item.scales,
                item.get("biases"),
                group_size=item.group_size,
                bits=item.bits,
                mode=item.mode,
            ).astype(mx.float32)
            if "bias" in item:
                plain.bias = item.bias
            (dict if isinstance(module, dict) else list).__setitem__(module, name, plain)
        elif isinstance(item, (dict, list)):
            _dequantise(item)


def _nudge(x: mx.array) -> mx.array:
    signs = 1 - 2 * mx.random.bernoulli(0.5, x.shape, key=mx.random.key(9)).astype(mx.float32)
    return (x.astype(mx.float32) * (1 + signs * 2**-23)).astype(x.dtype)


def _distance(found: Sequence[mx.array], reference: Sequence[mx.array]) -> float:
    """Return the largest rms difference of any output, relative to that output's rms."""
    worst = 0.0
    for x, y in zip(found, reference, strict=True):
        wide = y.astype(mx.float32)
        square = mx.mean(mx.square(x.astype(mx.float32) - wide)) / mx.mean(mx.square(wide))
        value = math.sqrt(float(square))
        worst = value if math.isnan(value) else max(worst, value)
    return worst


def _rank(count: int) -> int:
    """Return which of ``count`` sorted values the median exceeds but for a chance of 1 %."""
    chance, rank = 0.0, -1
    while rank < count // 2:
        chance += math.comb(count, rank + 1) / 2**count
        if chance > 0.01:
            break
        rank += 1
    return max(rank, 0)
