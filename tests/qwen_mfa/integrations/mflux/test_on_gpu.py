"""The parts of a step where MLX computes on a GPU: what the CPU's tests claim holds there, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from qwen_mfa import telemetry
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import integration
from qwen_mfa.selection import session
from tests.qwen_mfa.integrations.mflux.conftest import LAYERS, STEPS, transformer
from tests.qwen_mfa.integrations.mflux.test_qwen_image import pipeline
from tests.qwen_mfa.integrations.mflux.test_step import NOTHING, parts, relative

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.gpu

# Of the largest value over a whole run: a GPU's fused code orders and contracts otherwise.
FLOAT32 = 1e-4


@pytest.fixture(autouse=True)
def from_zero(monkeypatch: pytest.MonkeyPatch, small_problems_too: None) -> None:
    """Force no kernel; inherit nothing that another test found out."""
    monkeypatch.delenv("QWEN_MFA_BACKEND")
    monkeypatch.setattr(integration._host, "_steps", {})
    telemetry.start()
    session.start()


def test_fused_blocks(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING):
        plain = generate(image)
    with mflux.enabled(**{**NOTHING, "fused_blocks": "on"}) as _:
        fused = generate(image)
    assert relative(fused, plain) <= FLOAT32
    assert parts("fused blocks")["fused"] == 2 * STEPS * LAYERS - 1


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_said_to_be_bit_identical(
    generate: Callable[..., mx.array], dtype: mx.Dtype, fused: str
) -> None:
    image = pipeline(transformer(dtype))
    options: dict[str, Any] = {**NOTHING, "fused_blocks": fused}
    with mflux.enabled(**options):
        plain = generate(image)
    for part in (
        {"share_modulation": True},
        {"share_mask": True},
        {"early_start": "on"},
        {"free_modulation": True},  # the last: its weights do not come back
    ):
        with mflux.enabled(**{**options, **part}):
            assert mx.array_equal(generate(image), plain), part


def test_guidance_1_without_the_negative_pass(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING):
        plain = generate(image, guidance=1.0)
    with mflux.enabled(**{**NOTHING, "skip_negative": True}):
        found = generate(image, guidance=1.0)
    assert relative(found, plain) <= 1e-5
    assert parts("negative passes")["skipped: guidance is 1"] == STEPS


def test_all_as_it_comes(generate: Callable[..., mx.array]) -> None:
    """Nothing asked for: validated and measured, started early, and right whatever was chosen."""
    image = pipeline(transformer())
    plain = generate(image)
    with mflux.enabled() as _:
        found = generate(image)
        assert mflux.status().blocks
    assert relative(found, plain) <= FLOAT32
    assert parts("early start")["starts"]


def test_bfloat16(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer(mx.bfloat16))
    plain = generate(image)
    with mflux.enabled(precision="bfloat16"):
        found = generate(image)
    assert parts("precision") == {"passes in bfloat16": 2 * STEPS}
    assert 0 < relative(found, plain) < 0.1
