"""Real Qwen-Image modules of mflux, random weights: the integration on against off.

float32: 1e-5 of the largest value over the whole run. bfloat16: two correct kernels differ in the
last place of attention's result (2^-8 of it); the same networks with MLX's attention rounded one
unit differently show how far that spreads, see `spread`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mflux.callbacks.callback_registry import CallbackRegistry
from mflux.models.common.config import ModelConfig
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mflux.models.qwen.model.qwen_transformer import qwen_attention
from mflux.models.qwen.model.qwen_transformer.qwen_attention import QwenAttention
from mflux.models.qwen.variants.txt2img.qwen_image import QwenImage
from mflux.models.qwen.weights.qwen_lora_mapping import QwenLoRAMapping
from mflux.models.qwen.weights.qwen_weight_definition import QwenWeightDefinition
from mlx import nn

from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import mask as mask_module
from tests.qwen_mfa.integrations.mflux.conftest import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    SIDE,
    STEPS,
    TEXT_DIM,
    Comparison,
    config,
    draw,
    transformer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Compare = Callable[..., Comparison]

pytestmark = pytest.mark.cpu

FLOAT32 = 1e-5
DIM = HEADS * HEAD_DIM
TOKENS = SIDE * SIDE
TEXT = 20
CHANNELS = 64


def rope(image: int, text: int) -> tuple[tuple[mx.array, mx.array], tuple[mx.array, mx.array]]:
    angles = draw(5, image + text, HEAD_DIM // 2)
    cos, sin = mx.cos(angles), mx.sin(angles)
    return (cos[text:], sin[text:]), (cos[:text], sin[:text])


def text_mask(*lengths: int) -> mx.array:
    mask = (mx.arange(TEXT)[None] < mx.array(lengths)[:, None]).astype(mx.int32)
    mx.eval(mask)
    return mask


def spread(work: Callable[[], mx.array]) -> float:
    """How far one unit in the last place of every attention result spreads, with MLX alone."""
    plain = work()
    mx.eval(plain)
    original = qwen_attention.scaled_dot_product_attention

    def nudged(*args: Any, **options: Any) -> mx.array:
        out = original(*args, **options)
        signs = 1 - 2 * (mx.random.bernoulli(0.5, out.shape, key=mx.random.key(9)))
        return (out.astype(mx.float32) * (1 + signs * 2**-8)).astype(out.dtype)

    qwen_attention.scaled_dot_product_attention = nudged
    try:
        other = work()
        mx.eval(other)
    finally:
        qwen_attention.scaled_dot_product_attention = original
    wide = plain.astype(mx.float32)
    return float((mx.abs(other.astype(mx.float32) - wide).max() / mx.abs(wide).max()).item())


def predict(model: Any, latents: mx.array, mask: mx.array, **options: Any) -> mx.array:
    batch = mask.shape[0]
    return model(
        t=1,
        config=options.pop("config", None) or config(),
        hidden_states=latents,
        encoder_hidden_states=draw(21, batch, TEXT, TEXT_DIM, dtype=latents.dtype),
        encoder_hidden_states_mask=mask,
        **options,
    )


@pytest.mark.parametrize("lengths", [(20,), (20, 20), (20, 7), (3, 20, 20)], ids=str)
def test_attention(compare: Compare, lengths: tuple[int, ...]) -> None:
    mx.random.seed(1)
    attention = QwenAttention(dim=DIM, num_heads=HEADS, head_dim=HEAD_DIM)
    image, text = draw(2, len(lengths), TOKENS, DIM), draw(3, len(lengths), TEXT, DIM)

    def work() -> mx.array:
        outputs = attention(image, text, text_mask(*lengths), rope(TOKENS, TEXT))
        return mx.concatenate(outputs, axis=1)

    found = compare(work)
    assert found.difference <= FLOAT32
    assert found.usage.padding_removed == (len(set(lengths)) > 1)


def test_attention_at_full_width(compare: Compare) -> None:
    mx.random.seed(2)
    attention = QwenAttention(dim=3072, num_heads=24, head_dim=128)
    image, text = draw(2, 1, 16, 3072), draw(3, 1, 6, 3072)

    def work() -> mx.array:
        return mx.concatenate(attention(image, text, mx.ones((1, 6)), rope(16, 6)), axis=1)

    assert compare(work).difference <= FLOAT32


def test_transformer(compare: Compare) -> None:
    model = transformer()
    found = compare(lambda: predict(model, draw(6, 1, TOKENS, CHANNELS), text_mask(20)))
    assert found.difference <= FLOAT32
    assert found.usage.kernels == {"cpu": LAYERS}


def test_transformer_with_prompts_of_different_lengths(compare: Compare) -> None:
    """Guidance in one batch: padding is removed in every block, with two sets of keys."""
    model = transformer()
    found = compare(lambda: predict(model, draw(6, 2, TOKENS, CHANNELS), text_mask(20, 5)))
    assert found.difference <= FLOAT32
    assert found.usage.padding_removed == LAYERS
    assert found.usage.kernels == {"cpu": 2 * LAYERS}
    lengths = {problem.seq_kv for problem in found.usage.native}
    assert lengths == {TOKENS + 20, TOKENS + 5}


def test_transformer_bfloat16(compare: Compare) -> None:
    model = transformer(mx.bfloat16)
    latents = draw(6, 1, TOKENS, CHANNELS, dtype=mx.bfloat16)

    def work() -> mx.array:
        return predict(model, latents, text_mask(20))

    found = compare(work)
    assert found.on.dtype == mx.bfloat16
    allowed = spread(work)
    assert 0 < allowed < 0.1
    assert found.difference <= 2 * allowed


def test_prompts_of_different_lengths_in_bfloat16() -> None:
    """mflux alone cannot: MLX rejects its float32 mask. Each row is as it is alone, unpadded."""
    model = transformer(mx.bfloat16)
    latents = draw(6, 2, TOKENS, CHANNELS, dtype=mx.bfloat16)
    text = draw(21, 2, TEXT, TEXT_DIM, dtype=mx.bfloat16)

    def work(rows: slice, length: int, mask: mx.array) -> mx.array:
        out: mx.array = model(
            t=1,
            config=config(),
            hidden_states=latents[rows],
            encoder_hidden_states=text[rows, :length],
            encoder_hidden_states_mask=mask,
        )
        mx.eval(out)
        return out

    with pytest.raises(ValueError, match="Mask type must promote"):
        work(slice(0, 2), TEXT, text_mask(20, 5))
    with mflux.enabled():
        together = work(slice(0, 2), TEXT, text_mask(20, 5))
    alone = [work(slice(0, 1), 20, mx.ones((1, 20))), work(slice(1, 2), 5, mx.ones((1, 5)))]
    allowed = 2 * spread(lambda: work(slice(0, 1), 20, mx.ones((1, 20))))
    assert 0 < allowed < 0.1
    for row, expected in enumerate(alone):
        got, wide = together[row : row + 1].astype(mx.float32), expected.astype(mx.float32)
        assert (mx.abs(got - wide).max() / mx.abs(wide).max()).item() <= allowed


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["edit", "edit-2511"])
def test_reference_picture_tokens_of_an_edit(compare: Compare, zero_cond_t: bool) -> None:
    model = transformer(zero_cond_t=zero_cond_t)
    both = draw(7, 1, TOKENS + 24, CHANNELS)
    grid = {"cond_image_grid": (1, 4, 6)}
    found = compare(lambda: predict(model, both, text_mask(20), **grid)[:, :TOKENS])
    assert found.difference <= FLOAT32
    assert {problem.seq_q for problem in found.usage.native} == {TEXT + TOKENS + 24}


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights(compare: Compare, bits: int) -> None:
    """As mflux quantises on loading (`WeightApplier`): its predicate, its number of bits."""
    model = transformer()

    def predicate(path: str, module: nn.Module) -> Any:
        return QwenWeightDefinition.quantization_predicate(path, module, bits)

    nn.quantize(model, class_predicate=predicate, bits=bits)
    assert type(model.transformer_blocks[0].attn.to_q) is nn.QuantizedLinear
    assert model.transformer_blocks[0].attn.to_q.bits == bits
    found = compare(lambda: predict(model, draw(6, 1, TOKENS, CHANNELS), text_mask(20)))
    assert found.difference <= FLOAT32


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "not-baked"])
def test_lora(compare: Compare, tmp_path: Path, bake: bool) -> None:
    latents = draw(6, 1, TOKENS, CHANNELS)
    base = predict(transformer(), latents, text_mask(20))
    model = transformer()
    adapter = {
        f"transformer_blocks.{block}.attn.{name}.{half}.weight": draw(
            block + offset, *((DIM, 4) if half == "lora_up" else (4, DIM))
        )
        * 0.05
        for block in range(LAYERS)
        for offset, name in ((31, "to_q"), (41, "to_k"), (51, "add_v_proj"))
        for half in ("lora_up", "lora_down")
    }
    mx.save_safetensors(str(tmp_path / "adapter.safetensors"), adapter)
    LoRALoader.load_and_apply_lora(
        QwenLoRAMapping.get_mapping(),
        model,
        [str(tmp_path / "adapter.safetensors")],
        [1.0],
        bake_lora=bake,
    )
    found = compare(lambda: predict(model, latents, text_mask(20)))
    assert found.difference <= FLOAT32
    assert mx.abs(found.off - base).max().item() > 1e-3, "the adapter does nothing"


def pipeline(model: nn.Module) -> QwenImage:
    """mflux's own pipeline object, around a small transformer and cached prompt embeddings."""
    image = QwenImage.__new__(QwenImage)
    nn.Module.__init__(image)
    image.prompt_cache = {
        "a cat|NEG|a dog": (
            draw(61, 1, TEXT, TEXT_DIM),
            text_mask(TEXT),
            draw(62, 1, 5, TEXT_DIM),
            mx.ones((1, 5), dtype=mx.int32),
        )
    }
    image.model_config = ModelConfig.qwen_image()
    image.callbacks = CallbackRegistry()
    image.tiling_config = image.bits = image.lora_paths = image.lora_scales = None
    image.vae = image.text_encoder = None
    image.tokenizers = {"qwen": None}
    image.transformer = model
    return image


@pytest.mark.parametrize("scheduler", ["linear", "flow_match_euler_discrete"])
def test_whole_generation(
    compare: Compare, generate: Callable[..., mx.array], scheduler: str
) -> None:
    """`QwenImage.generate_image`: schedule, guidance with prompts of two lengths, all steps."""
    image = pipeline(transformer())
    found = compare(lambda: generate(image, scheduler=scheduler))
    assert found.difference <= FLOAT32
    assert found.usage.kernels == {"cpu": 2 * STEPS * LAYERS}
    lengths = {problem.seq_kv for problem in found.usage.native}
    assert lengths == {TOKENS + TEXT, TOKENS + 5}


def test_mask_is_converted_once_for_all_blocks(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mflux's own conversion, which waits for the device, runs once for each prompt's mask."""
    calls = []
    original = QwenAttention._convert_mask_for_qwen

    def counted(mask: mx.array, joint_seq_len: int, txt_seq_len: int) -> mx.array | None:
        calls.append(joint_seq_len)
        return original(mask, joint_seq_len, txt_seq_len)

    model = transformer()
    monkeypatch.setattr(QwenAttention, "_convert_mask_for_qwen", staticmethod(counted))
    mask = text_mask(20)
    compare(lambda: predict(model, draw(6, 1, TOKENS, CHANNELS), mask))
    assert len(calls) == LAYERS + 1  # off: every block; on: once


def test_a_mask_that_does_more_than_hide_is_handed_on_as_it_is() -> None:
    biased = mx.array([[[[0.0, -59.6, -1e9]]]])
    assert mask_module._as_bool(biased) is biased
    hiding = mask_module._as_bool(mx.array([[[[0.0, -1e9, -65504.0]]]]))
    assert hiding.tolist() == [[[[True, False, False]]]]


def test_a_mask_changed_in_place_is_converted_again(compare: Compare) -> None:
    mx.random.seed(1)
    attention = QwenAttention(dim=DIM, num_heads=HEADS, head_dim=HEAD_DIM)
    image, text = draw(2, 2, TOKENS, DIM), draw(3, 2, TEXT, DIM)
    mask = text_mask(20, 12)

    def work() -> mx.array:
        mask[1, :] = (mx.arange(TEXT) < 12).astype(mx.int32)
        first = attention(image, text, mask, rope(TOKENS, TEXT))[0]
        mask[1, 4:] = 0
        second = attention(image, text, mask, rope(TOKENS, TEXT))[0]
        return mx.stack([first, second])

    found = compare(work)
    assert found.difference <= FLOAT32
    assert mx.abs(found.on[0] - found.on[1]).max().item() > 1e-3


def test_gradients_through_mflux(compare: Compare) -> None:
    """Training (LoRA) goes through the same attention."""
    model = transformer()
    latents = draw(6, 2, TOKENS, CHANNELS)

    def work() -> mx.array:
        return mx.grad(lambda x: (predict(model, x, text_mask(20, 5)) ** 2).mean())(latents)

    assert compare(work).difference <= FLOAT32
