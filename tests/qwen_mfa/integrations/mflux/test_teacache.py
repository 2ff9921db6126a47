"""mlx-teacache and this integration at once: what TeaCache gives alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx_teacache
import pytest
from mflux.models.qwen.variants.txt2img import qwen_image

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import integration
from tests.qwen_mfa.integrations.mflux.conftest import LAYERS, SIDE, transformer
from tests.qwen_mfa.integrations.mflux.test_qwen_image import FLOAT32, pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cpu

STEPS = 6


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, float], mx.array]:
    decoded: list[mx.array] = []

    def decode(vae: None, latent: mx.array, tiling_config: None = None) -> mx.array:
        decoded.append(latent)
        return mx.zeros((1, 3, 16 * SIDE, 16 * SIDE))

    monkeypatch.setattr(qwen_image.VAEUtil, "decode", decode)
    monkeypatch.setattr(integration._host, "_steps", {})  # nothing found out by another test

    def generate(image: Any, guidance: float) -> mx.array:
        decoded.clear()
        image.generate_image(
            seed=3,
            prompt="a cat",
            negative_prompt="a dog",
            num_inference_steps=STEPS,
            height=16 * SIDE,
            width=16 * SIDE,
            guidance=guidance,
        )
        mx.eval(decoded[0])
        return decoded[0]

    return generate


# It was verified on mflux 0.23, and says so with a newer one.
@pytest.mark.filterwarnings("ignore::mlx_teacache.errors.TeaCacheUntestedMfluxWarning")
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_both_at_once(run: Callable[[Any, float], mx.array], guidance: float) -> None:
    image = pipeline(transformer())
    plain = run(image, guidance)
    # Any change counts as it is; the sum of two steps' changes or so is let pass.
    options = {"coefficients": (0, 0, 0, 1, 0), "rel_l1_thresh": 1.0}
    with mlx_teacache.apply_teacache(image, **options) as handle:
        alone = run(image, guidance)
        skipped = handle.stats.skipped_count
        telemetry.start()
        with mflux.enabled(fused_blocks="on"):
            both = run(image, guidance)
        assert handle.stats.skipped_count == 2 * skipped
    assert skipped > 0
    largest = mx.abs(alone).max()
    assert (mx.abs(both - alone).max() / largest).item() <= FLOAT32
    assert mx.abs(alone - plain).max().item() > FLOAT32, "skipping changed nothing"
    parts = qwen_mfa.stats().parts
    # Each step that it computes runs both prompts through all blocks; one was validated.
    assert parts["fused blocks", "fused"] == 2 * (STEPS - skipped) * LAYERS - 1
    assert not [part for part, _ in parts if part in {"negative passes", "modulation"}]
