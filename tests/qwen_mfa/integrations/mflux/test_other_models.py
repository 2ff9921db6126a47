"""Blocks of mflux's other models that the cut fits: FLUX.2 and Z-Image, their own transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer
from mlx import nn
from mlx.utils import tree_map

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import integration, skeleton
from qwen_mfa.integrations.mflux.records import Record
from tests.qwen_mfa.integrations.mflux.conftest import draw

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cpu

FLOAT32 = 1e-5
SIDE, TEXT = 6, 10


@pytest.fixture(autouse=True)
def from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test inherit what another found out."""
    telemetry.start()
    monkeypatch.setattr(integration._host, "_steps", {})


def drawn(model: Any, dtype: mx.Dtype) -> Any:
    mx.random.seed(5)
    model.update(
        tree_map(lambda x: (mx.random.normal(x.shape) * 0.05).astype(dtype), model.parameters())
    )
    mx.eval(model.parameters())
    return model


def flux2(dtype: mx.Dtype) -> Callable[..., mx.array]:
    model = drawn(
        Flux2Transformer(
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=128,
            num_attention_heads=2,
            in_channels=16,
            joint_attention_dim=32,
        ),
        dtype,
    )
    ids = [mx.zeros((n, 4), dtype=mx.int32) for n in (SIDE * SIDE, TEXT)]

    def run(**more: Any) -> mx.array:
        return model(
            hidden_states=draw(1, 1, SIDE * SIDE, 16, dtype=dtype),
            encoder_hidden_states=draw(2, 1, TEXT, 32, dtype=dtype),
            timestep=500,
            img_ids=ids[0],
            txt_ids=ids[1],
            **more,
        )

    return run


def z_image(dtype: mx.Dtype, **more: Any) -> Callable[..., mx.array]:
    sizes = {"dim": 256, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 2, "cap_feat_dim": 32}
    model = drawn(ZImageTransformer(**sizes | more), dtype)

    def run() -> mx.array:
        return model(
            x=draw(3, 16, 1, 2 * SIDE, 2 * SIDE, dtype=dtype),
            timestep=1,
            sigmas=mx.array([1.0, 0.5, 0.1]),
            cap_feats=draw(4, TEXT, 32, dtype=dtype),
        )

    return run


def relative(found: mx.array, expected: mx.array) -> float:
    wide = expected.astype(mx.float32)
    return float((mx.abs(found.astype(mx.float32) - wide).max() / mx.abs(wide).max()).item())


# The first block of each class is validated with the host's own result; FLUX.2 has two classes,
# Z-Image's refiner has other lengths than its layers.
CASES = [("flux2", flux2, 5, 2), ("z_image", z_image, 5, 2)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "make", "blocks", "classes"), CASES, ids=["flux2", "z-image"])
def test_fused_and_not(
    name: str, make: Callable[..., Any], blocks: int, classes: int, dtype: mx.Dtype
) -> None:
    run = make(dtype)
    plain = run()
    mx.eval(plain)
    with mflux.enabled((name,), fused_blocks="on"):
        first, again = run(), run()
        mx.eval(first, again)
        assert all("fused (asked for)" in text for text in mflux.status().blocks)
        assert len(mflux.status().blocks) == classes
    bound = FLOAT32 if dtype == mx.float32 else 0.05
    assert relative(first, plain) <= bound
    assert relative(again, plain) <= bound
    counted = {n: k for (part, n), k in qwen_mfa.stats().parts.items() if part == "fused blocks"}
    assert counted["validated"] == classes
    assert counted["fused"] == 2 * blocks - classes
    assert mx.array_equal(run(), plain), "the host was left changed"


def test_a_cache_of_keys_is_the_host_s_own_business() -> None:
    from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache

    run = flux2(mx.float32)

    def cached() -> mx.array:
        return run(kv_cache=Flux2KVCache(num_double_layers=2, num_single_layers=3))

    plain = cached()
    mx.eval(plain)
    with mflux.enabled(("flux2",), fused_blocks="on"):
        found = cached()
        mx.eval(found)
        assert not mflux.status().blocks
    assert relative(found, plain) <= FLOAT32


def test_settings_count_by_value_and_unknown_objects_by_identity() -> None:
    """mflux 0.24 gives each module a precision of its own: equal ones share their graphs."""

    class Setting:
        def __init__(self, value: Any) -> None:
            self.value = value

    def structure(setting: Any) -> Any:
        layer = nn.Linear(2, 2)
        layer.setting = setting
        return skeleton.read(layer)[1]

    assert structure(Setting(mx.float16)) == structure(Setting(mx.float16))
    assert structure(Setting(mx.float16)) != structure(Setting(None))
    assert structure(Setting([1])) != structure(Setting([1])), "it may change within"
    assert structure(lambda x: x) != structure(lambda x: x)


def test_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "pays", lambda _, seconds: seconds > 1e9)
    run = z_image(mx.float32, norm_eps=1e-4)  # a structure that no other test compiled
    with mflux.enabled(("z_image",)):
        mx.eval(run())
        assert all("not earned" in text for text in mflux.status().blocks)
