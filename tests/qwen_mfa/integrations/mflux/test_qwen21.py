"""Real Qwen-Image 2.1 of mflux: compiled graph, eager steps, padded prompts, switching back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mflux.models.common.config import ModelConfig
from mflux.models.qwen21.model.qwen21_transformer.qwen21_layout import QwenImage21Layout
from mflux.models.qwen21.model.qwen21_transformer.qwen21_transformer import Qwen21Transformer
from mflux.models.qwen21.model.qwen21_transformer.qwen_image21_transformer import (
    QwenImage21Transformer,
)

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.cli import run
from qwen_mfa.integrations import mflux
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
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Compare = Callable[..., Comparison]

pytestmark = pytest.mark.cpu

FLOAT32 = 1e-5
TOKENS, TEXT, CHANNELS = SIDE * SIDE, 12, 64


@pytest.fixture
def model() -> Qwen21Transformer:
    mx.random.seed(13)
    built = Qwen21Transformer(num_layers=LAYERS, num_attention_heads=HEADS, context_in_dim=TEXT_DIM)
    mx.eval(built.parameters())
    return built


def steps(model: Qwen21Transformer, mask: mx.array | None = None) -> mx.array:
    """Several steps of mflux's loop, with its scheduler and its packed projections."""
    settings = config(ModelConfig.qwen_image_21())
    latents = draw(1, 1, TOKENS, CHANNELS)
    text = draw(2, 1, TEXT, TEXT_DIM)
    mask = mx.ones((1, TEXT), dtype=mx.int32) if mask is None else mask
    with model.inference_projections():
        for t in range(STEPS):
            noise = model(
                t=t,
                config=settings,
                hidden_states=latents,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
            )
            latents = settings.scheduler.step(noise=noise, timestep=t, latents=latents)
            mx.eval(latents)
    return latents


@pytest.mark.parametrize("policy", ["auto", "eager"])
def test_eager_steps(compare: Compare, model: Qwen21Transformer, policy: str) -> None:
    telemetry.start()
    found = compare(lambda: steps(model), qwen21_steps=policy)
    assert qwen_mfa.stats().parts["Qwen-Image 2.1's steps", "eager"] == STEPS
    (said,) = run._around_attention(run._parts())
    assert said == f"{STEPS} steps of Qwen-Image 2.1 eager"
    assert found.difference <= FLOAT32
    # once for the cached text (causal), then every block of every step
    assert found.usage.kernels == {"cpu": LAYERS + STEPS * LAYERS}
    assert {(p.seq_q, p.seq_kv, p.mask) for p in found.usage.native} == {
        (TEXT, TEXT, "causal"),
        (TOKENS, TEXT + TOKENS, "none"),
    }


def test_graph_is_left_alone(compare: Compare, model: Qwen21Transformer) -> None:
    found = compare(lambda: steps(model), qwen21_steps="graph")
    assert found.difference <= FLOAT32
    assert found.usage.kernels["cpu"] == LAYERS  # the text, which mflux runs eagerly
    assert found.usage.kernels["mlx"] == LAYERS  # traced once, in the graph


def test_auto_leaves_the_graph_alone_where_no_kernel_is(
    compare: Compare, model: Qwen21Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    original = mx.compile
    monkeypatch.setattr(mx, "compile", lambda f: compiled.append(f) or original(f))
    with qwen_mfa.use("mlx"):
        found = compare(lambda: steps(model), native=False)
    assert found.difference == 0
    assert len(compiled) == 2  # off, and on


def test_padded_prompts_take_the_joint_path(compare: Compare, model: Qwen21Transformer) -> None:
    mask = (mx.arange(TEXT)[None] < 7).astype(mx.int32)
    model.use_text_cache = False
    # mflux makes this mask bfloat16, with float32 activations here
    found = compare(lambda: steps(model, mask))
    assert found.difference <= FLOAT32
    assert {p.mask for p in found.usage.native} == {"additive"}


def test_disabling_gives_the_compiled_steps_back(model: Qwen21Transformer) -> None:
    before = steps(model)
    with mflux.enabled(qwen21_steps="eager"):
        mx.eval(
            model(
                t=0,
                config=config(ModelConfig.qwen_image_21()),
                hidden_states=draw(1, 1, TOKENS, CHANNELS),
                encoder_hidden_states=draw(2, 1, TEXT, TEXT_DIM),
            )
        )
        assert model._image_step_fn is not None
    assert model._image_step_fn is None
    assert "_image_step_fn" not in vars(Qwen21Transformer)
    assert "_step_fn" not in vars(Qwen21Transformer)
    assert mx.array_equal(steps(model), before).item()


def test_edit_path_with_a_reference_picture(compare: Compare) -> None:
    mx.random.seed(13)
    model = QwenImage21Transformer(
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": LAYERS,
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": HEADS,
            "context_in_dim": TEXT_DIM,
            "mlp_ratio": 3,
            "axes_dims_rope": (16, 56, 56),
        }
    )
    mx.eval(model.parameters())
    # twelve text positions, then four slots of a reference picture of 4 x 4 latent tokens
    slots = mx.array([[0] * TEXT + [1] * 4])
    layout = QwenImage21Layout.create(slots, [(1, 4, 4), (1, SIDE, SIDE)], (16, 56, 56))
    text = draw(2, 1, TEXT + 4, TEXT_DIM)
    latents = draw(1, 1, 16 + TOKENS, CHANNELS)

    def work() -> mx.array:
        cache: list[object] = []
        first = model(latents, text, mx.array([0.8]), layout, cache)
        second = model(latents + 0.1, text, mx.array([0.4]), layout, cache)
        return mx.concatenate([first, second])

    assert compare(work).difference <= FLOAT32
