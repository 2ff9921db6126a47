"""mlx-teacache and this integration at once: what TeaCache gives alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx_teacache
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import integration
from tests.qwen_mfa.integrations.mflux.conftest import LAYERS, transformer
from tests.qwen_mfa.integrations.mflux.test_qwen_image import FLOAT32, pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cpu

STEPS = 6


# It was verified on mflux 0.23, and says so with a newer one.
@pytest.mark.filterwarnings("ignore::mlx_teacache.errors.TeaCacheUntestedMfluxWarning")
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_both_at_once(
    generate: Callable[..., mx.array], monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    monkeypatch.setattr(integration._host, "_steps", {})  # nothing found out by another test

    def run() -> mx.array:
        return generate(image, guidance=guidance, steps=STEPS)

    image = pipeline(transformer())
    plain = run()
    # Any change counts as it is; the sum of two steps' changes or so is let pass.
    options = {"coefficients": (0, 0, 0, 1, 0), "rel_l1_thresh": 1.0}
    with mlx_teacache.apply_teacache(image, **options) as handle:
        alone = run()
        skipped = handle.stats.skipped_count
        telemetry.start()
        with mflux.enabled(fused_blocks="on"):
            both = run()
        assert handle.stats.skipped_count == 2 * skipped
    assert skipped > 0
    largest = mx.abs(alone).max()
    assert (mx.abs(both - alone).max() / largest).item() <= FLOAT32
    assert mx.abs(alone - plain).max().item() > FLOAT32, "skipping changed nothing"
    parts = qwen_mfa.stats().parts
    # Each step that it computes runs both prompts through all blocks; one was validated.
    assert parts["fused blocks", "fused"] == 2 * (STEPS - skipped) * LAYERS - 1
    assert not [part for part, _ in parts if part in {"negative passes", "modulation"}]
