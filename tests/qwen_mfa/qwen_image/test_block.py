"""What the golden vectors do not show: gradients, misuse, reference pictures, compiled graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from qwen_mfa.qwen_image import TransformerBlock, joint_mask, rope_tables

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, HEADS, HEAD_DIM, GRID, TEXT = 32, 2, 16, (1, 3, 4), 5
AXES = (4, 6, 6)
TABLES = rope_tables([GRID], TEXT, axes=AXES)


def small_block() -> TransformerBlock:
    mx.random.seed(3)
    block = TransformerBlock(dim=DIM, heads=HEADS, head_dim=HEAD_DIM)
    block.update({"attn": {"norm_q": {"weight": 1 + 0.1 * mx.random.normal((HEAD_DIM,))}}})
    mx.eval(block.parameters())
    return block


def inputs(batch: int = 2) -> tuple[mx.array, mx.array, mx.array]:
    mx.random.seed(4)
    shapes = [(batch, 12, DIM), (batch, TEXT, DIM), (batch, DIM)]
    image, text, time = (mx.random.normal(shape) for shape in shapes)
    return image, text, time


def plain_attention(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | None = None
) -> mx.array:
    """Attention written out, so that its gradients owe nothing to any fast path."""
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    return mx.softmax(scores, axis=-1) @ v


def loss(block: TransformerBlock, image: mx.array, text: mx.array, time: mx.array) -> mx.array:
    mask = joint_mask(mx.array([[1] * TEXT, [1, 1, 0, 0, 0]]), image.shape[1])
    out_image, out_text = block(image, text, time, rope=TABLES, mask=mask)
    return (out_image * mx.cos(out_image)).mean() + (out_text[:, :2] ** 2).mean()


def gradients(attend: Callable[..., mx.array] | None) -> tuple[dict[str, mx.array], list[mx.array]]:
    block = small_block()
    if attend is not None:
        block.attn.attend = attend
    image, text, time = inputs()
    _, weights = nn.value_and_grad(block, loss)(block, image, text, time)
    arrays = mx.grad(loss, argnums=(1, 2, 3))(block, image, text, time)
    return dict(tree_flatten(weights)), list(arrays)


@pytest.mark.usefixtures("each_kernel")
def test_gradients_are_those_of_plain_mlx() -> None:
    weights, arrays = gradients(None)
    plain_weights, plain_arrays = gradients(plain_attention)
    assert weights.keys() == plain_weights.keys()
    assert len(weights) == 32
    pairs = [
        *((weights[n], plain_weights[n]) for n in weights),
        *zip(arrays, plain_arrays, strict=True),
    ]
    for ours, plain in pairs:
        size = mx.abs(plain).max().item()
        assert mx.abs(ours - plain).max().item() <= 2e-5 * size + 1e-8
    zero = [n for n in weights if mx.abs(weights[n]).max().item() == 0]
    assert not zero


@pytest.mark.usefixtures("each_kernel")
def test_gradient_agrees_with_finite_differences() -> None:
    block = small_block()
    image, text, time = inputs()
    mx.random.seed(5)
    direction = mx.random.normal(image.shape)
    slope = (mx.grad(loss, argnums=1)(block, image, text, time) * direction).sum().item()
    step = 1e-2
    higher = loss(block, image + step * direction, text, time).item()
    lower = loss(block, image - step * direction, text, time).item()
    assert (higher - lower) / (2 * step) == pytest.approx(slope, rel=1e-2)


@pytest.mark.usefixtures("each_kernel")
def test_compiled_graph_gives_the_same() -> None:
    block = small_block()
    image, text, time = inputs()
    mask = joint_mask(mx.array([[1] * TEXT, [1, 1, 1, 1, 0]]), 12)

    def run(
        image: mx.array, text: mx.array, time: mx.array, mask: mx.array
    ) -> tuple[mx.array, ...]:
        return block(image, text, time, rope=TABLES, mask=mask)

    for eager, compiled in zip(
        run(image, text, time, mask), mx.compile(run)(image, text, time, mask), strict=True
    ):
        assert mx.allclose(eager, compiled, rtol=1e-5, atol=1e-6).item()


def test_a_mask_inside_a_compiled_graph() -> None:
    compiled = mx.compile(lambda text_mask: joint_mask(text_mask, 3))
    text_mask = mx.array([[1, 0], [1, 1]])
    assert mx.array_equal(compiled(text_mask), joint_mask(text_mask, 3)).item()


@pytest.mark.usefixtures("each_kernel")
def test_padded_text_changes_nothing() -> None:
    """Rows of different lengths in one batch come out as each alone without padding."""
    block = small_block()
    image, text, time = inputs()
    lengths = [5, 3]
    mask = joint_mask(mx.array([[int(i < n) for i in range(TEXT)] for n in lengths]), 12)
    together, _ = block(image, text, time, rope=TABLES, mask=mask)
    for row, length in enumerate(lengths):
        own = slice(row, row + 1)
        alone, _ = block(
            image[own], text[own, :length], time[own], rope=rope_tables([GRID], length, axes=AXES)
        )
        assert mx.abs(together[own] - alone).max().item() <= 2e-6


def test_reference_pictures_shift_frame_and_text() -> None:
    tables = rope_tables([(1, 2, 2), (1, 6, 4)], 2, axes=(2, 2, 2))
    assert tables.image_cos.shape == (2 * 2 + 6 * 4, 3)
    angles = np.arctan2(np.array(tables.image_sin), np.array(tables.image_cos))
    # axis 0 is the number of the picture; rows and columns count from the middle of each
    first = np.array([[0, -1, -1], [0, -1, 0], [0, 0, -1], [0, 0, 0]])
    assert angles[:4] == pytest.approx(first)
    assert angles[4] == pytest.approx(np.array([1, -3, -2]))
    text = np.arctan2(np.array(tables.text_sin), np.array(tables.text_cos))
    assert text == pytest.approx(np.array([[3] * 3, [4 - 2 * np.pi] * 3]))


def test_unscaled_positions() -> None:
    tables = rope_tables([(1, 2, 3)], 1, axes=(2, 2, 2), scale_rope=False)
    angles = np.arctan2(np.array(tables.image_sin), np.array(tables.image_cos))
    assert angles[-1].tolist() == pytest.approx([0, 1, 2])
    assert np.arctan2(np.array(tables.text_sin), np.array(tables.text_cos))[0, 0] == pytest.approx(
        3
    )


def test_no_text() -> None:
    assert rope_tables([(1, 2, 2)], 0).text_cos.shape == (0, 64)


@pytest.mark.parametrize(
    ("grids", "text", "axes"),
    [([], 1, AXES), ([(1, 0, 4)], 1, AXES), ([GRID], -1, AXES), ([GRID], 1, (3, 6, 6))],
    ids=["no-grid", "empty-grid", "negative-text", "odd-axis"],
)
def test_tables_that_cannot_be(
    grids: list[tuple[int, int, int]], text: int, axes: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="must"):
        rope_tables(grids, text, axes=axes)


def test_tables_for_other_inputs() -> None:
    image, text, time = inputs()
    with pytest.raises(ValueError, match="12 image and 4 text tokens, the inputs have 12 and 5"):
        small_block()(image, text, time, rope=rope_tables([GRID], 4, axes=AXES))


def test_mask_of_the_wrong_rank() -> None:
    with pytest.raises(ValueError, match=r"\[batch, text_tokens\]"):
        joint_mask(mx.ones((3,)), 4)
