"""Small real mflux models with random weights, and the comparison with the integration off."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mflux.models.common.config import ModelConfig
from mflux.models.common.config.config import Config
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.qwen.variants.txt2img import qwen_image
from mlx.utils import tree_map

from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.distributed import heads
from qwen_mfa.integrations.usage import Usage
from qwen_mfa.selection import session
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What is compared here is results: once validated, the native kernel runs even where a busy machine
# could not measure that it is faster. Child processes inherit it.
os.environ["QWEN_MFA_BACKEND"] = "cpu"

HEADS, HEAD_DIM, TEXT_DIM, LAYERS = 2, 128, 64, 3
SIDE = 4  # latent patches: a picture of 64 x 64 pixels has 4 x 4 of them
STEPS = 2


@pytest.fixture(autouse=True)
def small_problems_too(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> None:
    """Remove padding from models as small as these, too, whether or not it pays."""
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.setattr(padding, "MIN_QUERIES", 1)
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", "0")
    session.start()


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    yield
    assert not mflux.status().enabled, "a test left the integration on"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same computation with the integration off and on."""

    off: mx.array
    on: mx.array
    usage: Usage

    @property
    def difference(self) -> float:
        """Largest difference, relative to the largest value; infinite for NaN."""
        off, on = self.off.astype(mx.float32), self.on.astype(mx.float32)
        largest = mx.abs(off).max().item()
        found = mx.abs(on - off).max().item() / largest
        return found if found == found else float("inf")  # noqa: PLR0124 - NaN


@pytest.fixture
def compare() -> Callable[..., Comparison]:
    """Run a function without and with the integration; the native kernel must have run."""

    def run(work: Callable[[], mx.array], *, native: bool = True, **options: Any) -> Comparison:
        # Attention is what most tests count; the blocks around it have tests of their own.
        options.setdefault("fused_blocks", "off")
        off = work()
        mx.eval(off)
        usage = Usage()
        with mflux.enabled(**options):
            stop = usage.start()
            on = work()
            mx.eval(on)
            stop()
        assert bool(usage.kernels["cpu"]) == native, usage.kernels
        assert off.shape == on.shape
        assert off.dtype == on.dtype
        return Comparison(off=off, on=on, usage=usage)

    return run


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., mx.array]:
    """Run mflux's own loop over a pipeline, without a VAE; return the last latents."""
    decoded: list[mx.array] = []

    def decode(vae: None, latent: mx.array, tiling_config: None = None) -> mx.array:
        decoded.append(latent)
        return mx.zeros((1, 3, 16 * SIDE, 16 * SIDE))

    monkeypatch.setattr(qwen_image.VAEUtil, "decode", decode)

    def run(
        image: qwen_image.QwenImage, *, guidance: float = 4.0, steps: int = STEPS, **options: Any
    ) -> mx.array:
        decoded.clear()
        image.generate_image(
            seed=3,
            prompt="a cat",
            negative_prompt="a dog",
            num_inference_steps=steps,
            height=16 * SIDE,
            width=16 * SIDE,
            guidance=guidance,
            **options,
        )
        mx.eval(decoded[0])
        return decoded[0]

    return run


def transformer(dtype: mx.Dtype = mx.float32, *, zero_cond_t: bool = False) -> QwenTransformer:
    mx.random.seed(11)
    model = QwenTransformer(
        num_layers=LAYERS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_DIM,
        zero_cond_t=zero_cond_t,
    )
    model.update(tree_map(lambda x: x.astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model


def share_heads() -> None:
    """Share heads over ranks wherever that is asked for, without measuring: these are small."""

    def find(_: heads.Heads, title: str, *__: object) -> heads.Finding:
        return heads.Finding(title=title, split=True, reason="a test asks for it")

    heads.Heads.find = find  # type: ignore[method-assign]


def config(model_config: ModelConfig | None = None, **options: object) -> Config:
    size = {"height": 16 * SIDE, "width": 16 * SIDE, "num_inference_steps": STEPS}
    return Config(model_config=model_config or ModelConfig.qwen_image(), **{**size, **options})


def draw(seed: int, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    array = mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)
    mx.eval(array)
    return array
