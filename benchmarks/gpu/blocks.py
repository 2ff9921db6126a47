"""Blocks of mflux's other models: as mflux runs them, compiled whole, and cut at their attention.

    python benchmarks/gpu/blocks.py OUT.json [MODEL …]

Models: flux2-double, flux2-single, z-image, qwen21. Full width, random bfloat16 weights, a few
blocks in a row, 4096 image tokens and some text; rounds interleaved. What the cut leaves between
its halves is attention as `qwen_mfa` chooses it; errors are against a float32 run of the block.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from qwen_mfa.integrations.mflux import skeleton
from qwen_mfa.integrations.mflux.cut import Halves
from qwen_mfa.integrations.mflux.tracing import Opaque, attend

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE, TEXT, HEAD_DIM = 4096, 128, 128
BLOCKS, ROUNDS = 6, 7
MODELS = "mflux.models"


def random(*shape: int, scale: float = 1.0) -> mx.array:
    """Return bfloat16 numbers of ``shape``."""
    return (mx.random.normal(shape) * scale).astype(mx.bfloat16)


def drawn(make: Any, count: int = BLOCKS) -> list[Any]:
    """Return ``count`` blocks with random bfloat16 weights."""

    def weight(x: mx.array) -> mx.array:
        if x.ndim > 1:
            return random(*x.shape, scale=0.02)
        return (mx.random.normal(x.shape) * 0.01 + 1).astype(mx.bfloat16)

    blocks = []
    for _ in range(count):
        block = make()
        block.update(tree_map(weight, block.parameters()))
        mx.eval(block.parameters())
        blocks.append(block)
    return blocks


def rope(tokens: int) -> tuple[mx.array, mx.array]:
    """Return cosines and sines ``[tokens, HEAD_DIM / 2]`` of random angles."""
    angles = mx.random.uniform(0, 6.28, (tokens, HEAD_DIM // 2))
    return mx.cos(angles), mx.sin(angles)


def flux2_double() -> tuple[Any, list[Any], dict[str, Any], Any]:
    """Return the block's call, blocks, inputs, and which inputs its results are next."""
    module = importlib.import_module(f"{MODELS}.flux2.model.flux2_transformer.transformer_block")
    width = 24 * HEAD_DIM
    blocks = drawn(lambda: module.Flux2TransformerBlock(width, 24, HEAD_DIM))
    params = tuple(tuple(random(1, 1, width, scale=0.1) for _ in range(3)) for _ in range(2))
    inputs = {
        "hidden_states": random(1, IMAGE, width),
        "encoder_hidden_states": random(1, TEXT, width),
        "temb_mod_params_img": params,
        "temb_mod_params_txt": params,
        "image_rotary_emb": rope(TEXT + IMAGE),
    }
    names = ("encoder_hidden_states", "hidden_states")
    return module.Flux2TransformerBlock.__call__, blocks, inputs, names


def flux2_single() -> tuple[Any, list[Any], dict[str, Any], Any]:
    """As `flux2_double`."""
    name = f"{MODELS}.flux2.model.flux2_transformer.single_transformer_block"
    module = importlib.import_module(name)
    width = 24 * HEAD_DIM
    blocks = drawn(lambda: module.Flux2SingleTransformerBlock(width, 24, HEAD_DIM))
    inputs = {
        "hidden_states": random(1, TEXT + IMAGE, width),
        "temb_mod_params": tuple(random(1, 1, width, scale=0.1) for _ in range(3)),
        "image_rotary_emb": rope(TEXT + IMAGE),
    }
    return module.Flux2SingleTransformerBlock.__call__, blocks, inputs, ("hidden_states",)


def z_image() -> tuple[Any, list[Any], dict[str, Any], Any]:
    """As `flux2_double`; the mask hides nothing, as in mflux."""
    name = f"{MODELS}.z_image.model.z_image_transformer.transformer_block"
    module = importlib.import_module(name)
    width = 30 * HEAD_DIM
    blocks = drawn(lambda: module.ZImageTransformerBlock(width, 30))
    inputs = {
        "x": random(1, TEXT + IMAGE, width),
        "attn_mask": mx.ones((1, TEXT + IMAGE), dtype=mx.bool_),
        "freqs_cis": mx.stack(rope(TEXT + IMAGE), axis=-1),
        "t_emb": random(1, 256),
    }
    return module.ZImageTransformerBlock.__call__, blocks, inputs, ("x",)


def z_image_unmasked() -> tuple[Any, list[Any], dict[str, Any], Any]:
    """As `z_image`, without the mask that hides nothing."""
    call, blocks, inputs, names = z_image()
    return call, blocks, {**inputs, "attn_mask": None}, names


def qwen21() -> tuple[Any, list[Any], dict[str, Any], Any]:
    """As `flux2_double`: the part of the block that runs in every step, with cached text."""
    name = f"{MODELS}.qwen21.model.qwen21_transformer.qwen21_transformer_block"
    module = importlib.import_module(name)
    width = 32 * HEAD_DIM
    blocks = drawn(lambda: module.Qwen21TransformerBlock(width, 32, HEAD_DIM))
    cos, sin = rope(IMAGE)
    inputs = {
        "hidden_states": random(1, IMAGE, width),
        "key_text": random(1, 32, TEXT, HEAD_DIM),
        "value_text": random(1, 32, TEXT, HEAD_DIM),
        "mod1": random(1, IMAGE, 2 * width, scale=0.1),
        "mod2": random(1, IMAGE, 2 * width, scale=0.1),
        "rope_cos": cos,
        "rope_sin": sin,
    }
    return module.Qwen21TransformerBlock.image_forward, blocks, inputs, ("hidden_states",)


ALL = {
    "flux2-double": (flux2_double, f"{MODELS}.flux.model.flux_transformer.common.attention_utils"),
    "flux2-single": (flux2_single, f"{MODELS}.flux.model.flux_transformer.common.attention_utils"),
    "z-image": (z_image, f"{MODELS}.z_image.model.z_image_transformer.attention"),
    "z-image-unmasked": (
        z_image_unmasked,
        f"{MODELS}.z_image.model.z_image_transformer.attention",
    ),
    "qwen21": (qwen21, f"{MODELS}.qwen21.model.qwen21_transformer.qwen21_attention"),
}


@contextmanager
def attention(module: str, way: str) -> Iterator[None]:
    """Let blocks of ``module`` be traced, except for mflux's own ways."""
    owner: Any = importlib.import_module(module)
    before = owner.scaled_dot_product_attention
    owner.scaled_dot_product_attention = before if way.startswith("mflux") else attend
    try:
        yield
    finally:
        owner.scaled_dot_product_attention = before


def in_turn(run: Any, blocks: list[Any], inputs: dict[str, Any], names: Any) -> Any:
    """Run ``blocks`` one after the other, each on what the last one gave; return the last."""
    given = dict(inputs)
    for block in blocks:
        result = run(block, given)
        given |= dict(zip(names, result if isinstance(result, tuple) else (result,), strict=True))
    return [given[name] for name in names]


def distance(found: Any, reference: Any) -> float:
    """Return the largest rms difference, relative to the reference's rms."""
    pairs = zip(found, reference, strict=True)
    return max(
        float(mx.sqrt(mx.mean(mx.square(x.astype(mx.float32) - y)) / mx.mean(mx.square(y))))
        for x, y in pairs
    )


def ways_of(name: str, call: Any, block: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the ways to run a block, as functions of it and of its inputs."""
    layer = Opaque("kv_cache_layer_idx")
    static: dict[str, Any] = {key: None for key, value in inputs.items() if value is None}
    if name.startswith("flux2"):
        static |= {"kv_cache": None, layer.name: layer}
    halves = Halves(call, block, lambda _: {}, static)
    like = skeleton.copy(block)

    def host(block: Any, given: dict[str, Any]) -> Any:
        return call(block, **given)

    def traced(parameters: list[mx.array], given: dict[str, Any]) -> Any:
        skeleton.fill(like, block, iter(parameters))
        return call(like, **given)

    graph = mx.compile(traced)

    def whole(block: Any, given: dict[str, Any]) -> Any:
        return graph(skeleton.read(block)[0], given)

    def cut(block: Any, given: dict[str, Any]) -> Any:
        arrays = {key: value for key, value in given.items() if value is not None}
        return halves(skeleton.read(block)[0], {}, arrays, lambda _q, _k: None)

    def early(way: Any) -> Any:
        def run(block: Any, given: dict[str, Any]) -> Any:
            result = way(block, given)
            mx.async_eval(result)
            return result

        return run

    ways = {"mflux": host, "whole": whole, "cut": cut}
    return ways | {f"{name}, early start": early(way) for name, way in ways.items()}


def reference_of(call: Any, block: Any, inputs: dict[str, Any], names: Any) -> Any:
    """Return what the first block gives in float32."""
    wide = skeleton.copy(block)
    parameters = [x.astype(mx.float32) for x in skeleton.read(block)[0]]
    skeleton.fill(wide, block, iter(parameters))
    widened = {
        key: tree_map(lambda x: x.astype(mx.float32) if x.dtype == mx.bfloat16 else x, value)
        for key, value in inputs.items()
        if value is not None
    }
    absent = {key: None for key, value in inputs.items() if value is None}
    return in_turn(lambda block, given: call(block, **given), [wide], widened | absent, names)


def measure(name: str) -> dict[str, Any]:
    """Return times, gains, errors and first calls of one model's blocks."""
    mx.random.seed(1)
    make, module = ALL[name]
    call, blocks, inputs, names = make()
    mx.eval([x for x in inputs.values() if x is not None])
    ways = ways_of(name, call, blocks[0], inputs)
    found: dict[str, Any] = {"first": {}, "error": {}, "ms": {}, "gain": {}, "failed": {}}
    reference = reference_of(call, blocks[0], inputs, names)
    times: dict[str, list[float]] = {}
    for title, way in ways.items():
        start = time.perf_counter()
        try:
            with attention(module, title):
                one = in_turn(way, blocks[:1], inputs, names)
                mx.eval(one)
        except Exception as error:  # noqa: BLE001 - what does not fit is a result, too
            found["failed"][title] = f"{type(error).__name__}: {error}"[:300]
            continue
        found["first"][title] = time.perf_counter() - start
        found["error"][title] = distance(one, reference)
        times[title] = []
    for number in range(ROUNDS):
        for title in sorted(times, reverse=bool(number % 2)):
            with attention(module, title):
                mx.eval(in_turn(ways[title], blocks, inputs, names))
                start = time.perf_counter()
                mx.eval(in_turn(ways[title], blocks, inputs, names))
                times[title].append((time.perf_counter() - start) / len(blocks) * 1e3)
    for title, taken in times.items():
        found["ms"][title] = statistics.median(taken)
        ratios = [a / b for a, b in zip(times["mflux"], taken, strict=True)]
        found["gain"][title] = [min(ratios), statistics.median(ratios), max(ratios)]
    return found


def main() -> None:
    """Measure, print, and keep what there is after each model."""
    out, *names = sys.argv[1:]
    report = {"machine": str(mx.device_info()), "image": IMAGE, "text": TEXT, "blocks": BLOCKS}
    for name in names or ALL:
        report[name] = measure(name)
        print(name, json.dumps(report[name]), flush=True)
        Path(out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
