"""`qwen_mfa.qwen_image` against mflux's modules, from the same checkpoint file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mflux.models.common.weights.mapping.weight_mapper import WeightMapper
from mflux.models.qwen.model.qwen_transformer.qwen_rope import QwenEmbedRopeMLX
from mflux.models.qwen.model.qwen_transformer.qwen_transformer_block import QwenTransformerBlock
from mflux.models.qwen.weights.qwen_weight_mapping import QwenWeightMapping
from mlx.utils import tree_flatten

from qwen_mfa.qwen_image import TransformerBlock, joint_mask, load_block, rope_tables
from tests.qwen_mfa.integrations.mflux.conftest import HEAD_DIM, HEADS, draw

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cpu

DIM, TEXT, GRID = HEADS * HEAD_DIM, 9, (1, 6, 5)
BLOCK = 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file with published names: those of our module, under the block's prefix."""
    shapes = tree_flatten(TransformerBlock(dim=DIM, heads=HEADS, head_dim=HEAD_DIM).parameters())
    weights = {
        f"transformer_blocks.{BLOCK}.{name}": draw(index, *array.shape) * 0.05
        for index, (name, array) in enumerate(shapes)
    }
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    mx.save_safetensors(str(file), weights)
    return file


def mflux_block(checkpoint: Path) -> QwenTransformerBlock:
    """mflux's block, through mflux's own reading of the published names."""
    weights = WeightMapper.apply_mapping(
        mx.load(str(checkpoint)), QwenWeightMapping.get_transformer_mapping(), num_blocks=BLOCK + 1
    )
    block = QwenTransformerBlock(dim=DIM, num_heads=HEADS, head_dim=HEAD_DIM)
    mapped = dict(tree_flatten(weights["transformer_blocks"][BLOCK]))
    assert mapped.keys() == dict(tree_flatten(block.parameters())).keys()
    block.load_weights(list(mapped.items()))
    return block


@pytest.mark.parametrize("lengths", [(9,), (9, 4)], ids=str)
def test_block(checkpoint: Path, lengths: tuple[int, ...]) -> None:
    batch = len(lengths)
    image, text = draw(1, batch, GRID[1] * GRID[2], DIM), draw(2, batch, TEXT, DIM)
    time = draw(3, batch, DIM)
    text_mask = (mx.arange(TEXT)[None] < mx.array(lengths)[:, None]).astype(mx.int32)
    tables = rope_tables([GRID], TEXT)
    ours = load_block(checkpoint, BLOCK)(
        image, text, time, rope=tables, mask=joint_mask(text_mask, image.shape[1])
    )
    theirs_text, theirs_image = mflux_block(checkpoint)(
        image,
        text,
        text_mask,
        time,
        (
            (tables.image_cos, tables.image_sin),
            (tables.text_cos, tables.text_sin),
        ),
    )
    for a, b in zip(ours, (theirs_image, theirs_text), strict=True):
        assert mx.abs(a - b).max().item() <= 2e-6 * mx.abs(b).max().item()


@pytest.mark.parametrize("grids", [[(1, 6, 5)], [(1, 64, 64)], [(1, 8, 8), (1, 4, 11)]], ids=str)
def test_rope(grids: list[tuple[int, int, int]]) -> None:
    ours = rope_tables(grids, 33)
    embed = QwenEmbedRopeMLX(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    (image_cos, image_sin), (text_cos, text_sin) = embed(grids, [33])
    pairs = [
        (ours.image_cos, image_cos),
        (ours.image_sin, image_sin),
        (ours.text_cos, text_cos),
        (ours.text_sin, text_sin),
    ]
    for a, b in pairs:
        assert a.shape == b.shape
        assert mx.abs(a - b).max().item() <= 1e-5
