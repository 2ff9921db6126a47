"""A denoising step of mflux's own Qwen-Image modules, with the integration and without its parts.

Both passes of a step, guidance and the scheduler's update, with random weights at full width. The
ways run in interleaved rounds. The first is mflux alone with float32 latents: what its users have
today, and the reference for errors, because float32 latents make every product a float32 one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from qwen_mfa.cli import device
from qwen_mfa.cli.bench.records import Case, Entry
from qwen_mfa.cli.bench.rounds import Rounds, Spread, interleaved
from qwen_mfa.cli.table import seconds
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from qwen_mfa.cli.bench.step import Size

ALL_BLOCKS = 60
HEADS, HEAD_DIM, TEXT_DIM = 24, 128, 3584
NEGATIVE = 12  # tokens of a short negative prompt
GUIDANCE = 4.0
SHORT, BRIEF = 3.0, 0.7  # seconds
MAX_STEPS = 50  # until a trial of blocks has ended; it takes 41 runs of one at most


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a step.

    Attributes:
        latents: Their dtype as the host's loop holds them.
        guidance: 1 where the negative pass cancels.
        switches: For `qwen_mfa.integrations.mflux.enabled`; ``None`` for mflux alone.

    """

    latents: str = "float32"
    guidance: float = GUIDANCE
    switches: dict[str, Any] | None = None


HOST = "mflux"
_BF16 = {"precision": "bfloat16"}
_NOTHING = {
    "fused_blocks": "off",
    "early_start": "off",
    "skip_negative": False,
    "share_modulation": False,
    "share_mask": False,
}
WAYS: dict[str, Way] = {
    HOST: Way(),
    "mflux, again": Way(),
    "attention alone": Way(switches=_NOTHING),
    "all": Way(switches={}),
    "all, bfloat16": Way(switches=_BF16),
    "bfloat16 alone": Way(switches={**_BF16, **_NOTHING}),
    "all, bfloat16, blocks not fused": Way(switches={**_BF16, "fused_blocks": "off"}),
    "all, bfloat16, blocks fused": Way(switches={**_BF16, "fused_blocks": "on"}),
    "all, blocks fused": Way(switches={"fused_blocks": "on"}),
    "all, bfloat16, no early start": Way(switches={**_BF16, "early_start": "off"}),
    "all, modulation twice": Way(switches={"share_modulation": False}),
    "all, no early start": Way(switches={"early_start": "off"}),
    "all, bfloat16, modulation twice": Way(switches={**_BF16, "share_modulation": False}),
    "bfloat16 latents: mflux": Way(latents="bfloat16"),
    "bfloat16 latents: all": Way(latents="bfloat16", switches={}),
    "guidance 1: mflux": Way(guidance=1.0),
    "guidance 1: all": Way(guidance=1.0, switches={}),
    "guidance 1: all, bfloat16": Way(guidance=1.0, switches=_BF16),
    "guidance 1: all, negative pass computed": Way(guidance=1.0, switches={"skip_negative": False}),
}
# Ways that let weights go (measured by `freed`), and what they are with all weights.
FREED = {"all, modulation let go": "all", "all, bfloat16, modulation let go": "all, bfloat16"}
WAYS |= {
    name: Way(switches={**(WAYS[kept].switches or {}), "free_modulation": True})
    for name, kept in FREED.items()
}
WARMED = ("all, blocks fused", "all, bfloat16, blocks fused")


def available() -> bool:
    """Whether mflux is here in a version that the integration supports."""
    if importlib.util.find_spec("mflux") is None:
        return False
    try:
        mflux.check()
    except HostError:
        return False
    return True


def names(text: str) -> list[str]:
    """Read names of `WAYS` separated by semicolons; the first is always mflux alone."""
    found = [name.strip() for name in text.split(";")]
    unknown = [name for name in found if name not in WAYS]
    if unknown:
        msg = f"unknown ways {unknown}: choose from {'; '.join(WAYS)}"
        raise ValueError(msg)
    return list(dict.fromkeys([HOST, *found]))


@dataclass(kw_only=True)
class Model:
    """mflux's transformer with random weights.

    Attributes:
        transformer: The module.
        bits: Of quantised weights; 0 for bfloat16.

    """

    transformer: Any
    bits: int
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.transformer.transformer_blocks)


def draw(blocks: int, bits: int) -> Model:
    """Make the transformer; one block at a time, so that nothing is in memory twice."""
    module = importlib.import_module("mflux.models.qwen.model.qwen_transformer.qwen_transformer")
    mx.random.seed(0)
    transformer = module.QwenTransformer(
        num_layers=blocks, num_attention_heads=HEADS, joint_attention_dim=TEXT_DIM
    )
    transformer.set_dtype(mx.bfloat16)
    for block in transformer.transformer_blocks:
        block.update(tree_map(_random, block.parameters()))
        if bits:
            nn.quantize(block, bits=bits)
        mx.eval(block.parameters())
    mx.eval(transformer.parameters())
    return Model(transformer=transformer, bits=bits)


def _random(x: mx.array) -> mx.array:
    if x.ndim > 1:
        return (mx.random.normal(x.shape) * 0.02).astype(mx.bfloat16)
    centre = 1.0 if x.shape == (HEAD_DIM,) else 0.0  # of norms and of biases
    return (mx.random.normal(x.shape) * 0.01 + centre).astype(mx.bfloat16)


def steps(size: Size, model: Model) -> dict[str, Callable[[], mx.array]]:
    """Return one step for each way; each returns the next latents, evaluated.

    A way's step is to be called `within` that way.
    """
    side = 16 * size.side
    configs = importlib.import_module("mflux.models.common.config.config")
    models = importlib.import_module("mflux.models.common.config")
    config = configs.Config(
        model_config=models.ModelConfig.qwen_image(),
        height=side,
        width=side,
        num_inference_steps=4,
    )
    guide = _guidance()
    keys = mx.random.split(mx.random.key(3), 3)
    latents = mx.random.normal((1, size.side**2, 64), key=keys[0])
    prompts = [
        SimpleNamespace(
            embeds=mx.random.normal((1, n, TEXT_DIM), key=key).astype(mx.bfloat16),
            mask=mx.ones((1, n), dtype=mx.int32),
        )
        for n, key in zip((size.text, NEGATIVE), keys[1:], strict=True)
    ]
    mx.eval(latents, [p.embeds for p in prompts], [p.mask for p in prompts])

    def once(way: Way) -> mx.array:
        current = latents.astype(mx.bfloat16) if way.latents == "bfloat16" else latents
        on = mflux.step()
        passes = []
        for prompt in prompts:
            arguments = {
                "t": 1,
                "config": config,
                "hidden_states": current,
                "encoder_hidden_states": prompt.embeds,
                "encoder_hidden_states_mask": prompt.mask,
            }
            call = model.transformer
            # As mflux's own loop, where the integration recognises it.
            passes.append(on.passes.defer(call, **arguments) if on else call(**arguments))
        noise = guide(*passes, way.guidance)
        result: mx.array = config.scheduler.step(noise=noise, timestep=1, latents=current)
        mx.eval(result)
        return result

    return {name: lambda way=way: once(way) for name, way in WAYS.items()}  # type: ignore[misc]


def within(name: str) -> AbstractContextManager[object]:
    """Return what a way's steps run in: users switch the integration on once, not in each step."""
    switches = WAYS[name].switches
    return nullcontext() if switches is None else mflux.enabled(**switches)


def _guidance() -> Callable[..., mx.array]:
    """Return mflux's guidance, through whatever the integration puts there."""
    try:
        module = importlib.import_module("mflux.models.qwen.variants.txt2img.qwen_image")
    except ImportError:  # it needs tokenizers and more, the transformer does not
        plain = staticmethod(_guided)

        def guide(*arguments: Any) -> mx.array:
            on = mflux.step()
            found: mx.array = (on.passes.guidance_method(plain) if on else plain)(*arguments)
            return found

        return guide

    def current(*arguments: Any) -> mx.array:
        result: mx.array = module.QwenImage.compute_guided_noise(*arguments)
        return result

    return current


def _guided(noise: mx.array, negative: mx.array, guidance: float) -> mx.array:
    """Guide as Qwen-Image does: the combination, rescaled to the positive prediction's norm."""
    combined = negative + guidance * (noise - negative)
    norms = [mx.linalg.norm(x, axis=-1, keepdims=True) for x in (noise, combined)]
    return combined * (norms[0] / norms[1])


def measure(
    size: Size, model: Model, args: argparse.Namespace, progress: Callable[[float, str], None]
) -> Iterator[Case]:
    """Measure every way; give what there is after every round."""
    all_steps = steps(size, model)
    ways = {name: all_steps[name] for name in args.ways if name not in FREED}
    firsts: dict[str, float] = {}
    outputs: dict[str, mx.array] = {}
    memory: dict[str, int] = {}
    found: dict[str, float | str] = {}
    # So that compiling is on record, and "auto" decides by what blocks take once it is done.
    for name, taken in warm(ways, all_steps).items():
        firsts[f"compiling, {name}"] = taken
        _tell(f"{size.name}, compiling, {name}: {seconds(taken)}")
    durations: dict[str, float] = {}
    for number, (name, step) in enumerate(ways.items()):
        progress(0.2 * number / len(ways), f"first step: {name}")
        with within(name):
            start = time.perf_counter()
            step()
            firsts[name] = time.perf_counter() - start
            _tell(f"{size.name}, {name}: first step {seconds(firsts[name])}")
            outputs[name], durations[name], memory[name] = settled(step)
        found |= _blocks(WAYS[name], name)
    errors = {name: _error(outputs[name], outputs[_against(name, ways)]) for name in ways}
    base = Case(**described(size, model.blocks, model.bits), complete=False, conclusions=found)
    peaks: list[float] = []
    rounds = Rounds(times={})
    for number, rounds in enumerate(_interleaved(ways, durations, args.rounds), 1):
        progress(0.2 + 0.8 * number / args.rounds, f"round {number} of {args.rounds}")
        peak = device.peak_rate("bfloat16")
        if peak:
            peaks.append(peak)
        yield _filled(base, rounds, peaks, memory, errors, firsts, size)
    yield replace(_filled(base, rounds, peaks, memory, errors, firsts, size), complete=True)


def described(size: Size, blocks: int, bits: int) -> dict[str, Any]:
    """Return what says which step a `Case` is about."""
    return {
        "shape": f"mflux's step, {blocks} of {ALL_BLOCKS} blocks, random weights, {size.name}",
        "sizes": {"blocks": blocks, "Sq": size.tokens, "text": size.text, "bits": bits},
        "dtype": f"{bits} bits" if bits else "bfloat16",
        "mask": "none",
    }


def _interleaved(
    ways: dict[str, Callable[[], mx.array]], durations: dict[str, float], rounds: int
) -> Iterator[Rounds]:
    """Time each way after an untimed step of its own where steps are short.

    MLX keeps freed memory for reuse; what another way left does not fit, and asking the device for
    more takes milliseconds.
    """
    repeats = {
        name: 3 if taken < BRIEF else 2 if taken < SHORT else 1 for name, taken in durations.items()
    }
    return interleaved(ways, rounds=rounds, warm_up=0, repeats=repeats, within=within)


def warm(chosen: Collection[str], all_steps: dict[str, Callable[[], mx.array]]) -> dict[str, float]:
    """Compile what the chosen ways decide about; return the seconds of each way run for that."""
    found = {}
    for name in _to_be_warmed(chosen):
        start = time.perf_counter()
        with within(name):
            all_steps[name]()
        found[name] = time.perf_counter() - start
    return found


def settled(step: Callable[[], mx.array]) -> tuple[mx.array, float, int]:
    """Return latents, seconds and peak memory of a step, once nothing more is found out on it."""
    _settle(step)
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    latents = step()
    return latents, time.perf_counter() - start, mx.get_peak_memory()


def _settle(step: Callable[[], mx.array]) -> None:
    """Take steps until nothing more is found out about blocks: few blocks take many steps."""
    for _ in range(MAX_STEPS):
        step()
        on = mflux.step()
        if on is None or not any(trial.running for trial in on.trials()):
            return


def _to_be_warmed(chosen: Collection[str]) -> list[str]:
    """Return the ways that compile what the chosen ones decide about."""
    deciding = [
        way.latents == "bfloat16" or "precision" in way.switches
        for way in (WAYS[name] for name in chosen)
        if way.switches is not None and way.switches.get("fused_blocks", "auto") == "auto"
    ]
    return [name for name, narrow in zip(WARMED, (False, True), strict=True) if narrow in deciding]


def _tell(text: str) -> None:
    """Say how far it is where no bar is drawn: a run that is ended has said what it found."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _blocks(way: Way, name: str) -> dict[str, float | str]:
    """Say what was found out about the blocks."""
    if way.switches is None:
        return {}
    with mflux.enabled(**way.switches) as status:
        return {f"blocks, {name} {i}": f"{name}: {x}" for i, x in enumerate(status.blocks)}


def _error(found: mx.array, reference: mx.array) -> float:
    wide = reference.astype(mx.float32)
    square = mx.mean(mx.square(found.astype(mx.float32) - wide)) / mx.mean(mx.square(wide))
    return math.sqrt(float(square))


def operations(size: Size, blocks: int, *, passes: int) -> int:
    """Return the operations of a step's products: projections, feed-forward, attention."""
    width = HEADS * HEAD_DIM
    total = 0
    for text in (size.text, NEGATIVE)[:passes]:
        tokens = size.side**2 + text
        total += 4 * tokens * tokens * width + 2 * 12 * tokens * width * width
    return blocks * total


def _filled(
    base: Case,
    rounds: Rounds,
    peaks: list[float],
    memory: dict[str, int],
    errors: dict[str, float],
    firsts: dict[str, float],
    size: Size,
) -> Case:
    peak = Spread.of(peaks).median if peaks else None
    entries = []
    conclusions: dict[str, float | str] = dict(base.conclusions)
    for name in rounds.times:
        way = WAYS[name]
        both = operations(size, base.sizes["blocks"], passes=1 if way.guidance == 1 else 2)
        rate = both / rounds.time(name).median
        entries.append(
            Entry(
                contestant=name,
                rounds=len(rounds.times[name]),
                seconds=rounds.time(name),
                gflops=rate / 1e9,
                of_peak=rate / peak if peak else None,
                gain=rounds.ratio(_against(name, rounds.times), name),
                memory=memory[name],
            )
        )
        conclusions |= {f"error {name}": errors[name], f"first step {name}": firsts[name]}
    told = {name: f"{error:.1e}" for name, error in errors.items() if name != HOST}
    conclusions["errors"] = f"Next latents against {HOST} (float32), rms: {_listed(told)}."
    conclusions["first steps"] = "First step: " + _listed(
        {name: seconds(time) for name, time in firsts.items()}
    )
    return replace(
        base,
        peak_gflops=peak and peak / 1e9,
        peak_means=device.peak_means(),
        noise=rounds.ratio(HOST, "mflux, again") if "mflux, again" in rounds.times else None,
        entries=tuple(entries),
        conclusions=conclusions,
    )


def _against(name: str, measured: Collection[str]) -> str:
    """Return what a way is held against: mflux alone at the same guidance."""
    same = "guidance 1: mflux"
    return same if WAYS[name].guidance == 1 and same in measured else HOST


def _listed(values: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())
