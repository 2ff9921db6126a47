"""Reading a block from safetensors: published names, sharded folders, and all that can be wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from qwen_mfa.errors import WeightsError
from qwen_mfa.qwen_image import JointAttention, assign, load_block

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qwen_mfa.qwen_image.conftest import Golden

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def save(path: Path, weights: dict[str, mx.array]) -> Path:
    mx.save_safetensors(str(path), weights)
    return path


def same(block_weights: object, expected: dict[str, mx.array]) -> None:
    found = dict(tree_flatten(block_weights))
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]).item() for name in expected)


def test_one_block_alone(golden: Golden, tmp_path: Path) -> None:
    block = load_block(save(tmp_path / "block.safetensors", golden.weights))
    same(block.parameters(), golden.weights)
    assert (block.attn.heads, block.attn.head_dim) == (golden.heads, golden.head_dim)


def test_one_of_several_blocks_as_bfloat16(golden: Golden, tmp_path: Path) -> None:
    both = {f"transformer_blocks.3.{n}": a for n, a in golden.weights.items()}
    both |= {f"transformer_blocks.31.{n}": a + 1 for n, a in golden.weights.items()}
    both["img_in.weight"] = mx.zeros((4, 4))
    block = load_block(save(tmp_path / "all.safetensors", both), 3, dtype=mx.bfloat16)
    same(block.parameters(), {n: a.astype(mx.bfloat16) for n, a in golden.weights.items()})


def test_sharded_folder_reads_only_what_the_index_names(golden: Golden, tmp_path: Path) -> None:
    names = sorted(golden.weights)
    shards = {"one.safetensors": names[:20], "two.safetensors": names[20:]}
    weight_map = {"transformer_blocks.9.attn.to_q.weight": "absent.safetensors"}
    for file, own in shards.items():
        save(tmp_path / file, {f"transformer_blocks.2.{n}": golden.weights[n] for n in own})
        weight_map |= {f"transformer_blocks.2.{n}": file for n in own}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    same(load_block(tmp_path, 2).parameters(), golden.weights)
    with pytest.raises(WeightsError, match=r"absent\.safetensors does not exist"):
        load_block(tmp_path, 9)
    with pytest.raises(WeightsError, match="no Qwen-Image block 7"):
        load_block(tmp_path, 7)


def test_folder_without_index(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no \*\.safetensors files"):
        load_block(tmp_path)
    save(tmp_path / "a.safetensors", golden.weights)
    same(load_block(tmp_path).parameters(), golden.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn.add_k_proj.bias": None}, r"1 missing: attn\.add_k_proj\.bias"),
        ({"attn.to_q.scales": mx.zeros((2, 2))}, r"1 unknown: attn\.to_q\.scales"),
        ({"img_mod.1.bias": mx.zeros((7,))}, r"img_mod\.1\.bias \[7\], not \[1536\]"),
        ({"attn.to_k.bias": mx.zeros((256,), dtype=mx.int32)}, r"not floating-point: attn\.to_k"),
        ({"attn.norm_q.weight": None}, "no Qwen-Image block 0"),
        ({"attn.norm_q.weight": mx.ones((100,))}, "not a multiple of head_dim 100"),
    ],
    ids=["missing", "unknown", "shape", "integer", "no-size", "odd-size"],
)
def test_weights_that_do_not_fit(
    golden: Golden, tmp_path: Path, change: dict[str, mx.array | None], message: str
) -> None:
    changed = {**golden.weights, **change}
    weights = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(WeightsError, match=message):
        load_block(save(tmp_path / "block.safetensors", weights))


def test_nothing_is_assigned_when_something_is_wrong(golden: Golden) -> None:
    module = JointAttention(dim=golden.dim, heads=golden.heads, head_dim=golden.head_dim)
    before = dict(tree_flatten(module.parameters()))
    with pytest.raises(WeightsError, match=r"19 missing: .* and 13 more"):
        assign(module, {"to_q.weight": golden.weights["attn.to_q.weight"]})
    same(module.parameters(), before)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "block.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot be read|does not exist"):
        load_block(path)


def test_broken_index(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(WeightsError, match="not a safetensors index"):
        load_block(tmp_path)
