"""RoPE tables for Qwen-Image: three axes (frame, height, width), centred rows and columns.

Source: `QwenEmbedRope` of diffusers 0.42, whose tables `tests/data` holds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

AXES = (16, 56, 56)
THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class RopeTables:
    """Cosines and sines of the rotary angles, float32, ``[tokens, head_dim / 2]`` each.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> tables = qwen_image.rope_tables([(1, 2, 2)], 3)
        >>> isinstance(tables, qwen_image.RopeTables)
        True

    """

    image_cos: mx.array
    image_sin: mx.array
    text_cos: mx.array
    text_sin: mx.array


def rope_tables(
    grids: Sequence[tuple[int, int, int]],
    text_tokens: int,
    *,
    axes: tuple[int, int, int] = AXES,
    theta: float = THETA,
    scale_rope: bool = True,
) -> RopeTables:
    """Return the tables of one joint sequence; they are the same for every block and step.

    Args:
        grids: ``(frames, height, width)`` of each image in latent patches (1024 x 1024 pixels are
            ``(1, 64, 64)``): the picture to draw first, then the reference pictures of an edit.
        text_tokens: Text tokens, padding included.
        axes: Channels of a head that each axis rotates; even numbers whose sum is ``head_dim``.
        theta: Base of the geometric series of angles.
        scale_rope: Centre rows and columns on zero, as the published model does.

    Raises:
        ValueError: A grid without tokens, an odd axis, or a negative number of text tokens.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> tables = qwen_image.rope_tables([(1, 32, 32)], 100)  # 512 x 512 pixels, 100 text tokens

    """
    if not grids or any(side < 1 for grid in grids for side in grid):
        msg = f"grids must hold (frames, height, width) of at least 1 each, not {list(grids)}"
        raise ValueError(msg)
    if text_tokens < 0 or any(axis < 2 or axis % 2 for axis in axes):
        msg = f"text_tokens must be >= 0 and axes even, not {text_tokens} and {axes}"
        raise ValueError(msg)
    positions: list[tuple[int, int, int]] = []
    for index, (frames, height, width) in enumerate(grids):
        sides = (range(index, index + frames), _side(height, scale_rope), _side(width, scale_rope))
        positions.extend(itertools.product(*sides))
    # Text goes on where the largest picture ends, at the same place on all three axes.
    start = max(max(h // 2, w // 2) if scale_rope else max(h, w) for _, h, w in grids)
    text = [(place, place, place) for place in range(start, start + text_tokens)]
    image_cos, image_sin = _tables(positions, axes, theta)
    text_cos, text_sin = _tables(text, axes, theta)
    return RopeTables(
        image_cos=image_cos, image_sin=image_sin, text_cos=text_cos, text_sin=text_sin
    )


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotate the interleaved pairs of ``x``, ``[batch, tokens, heads, head_dim]``, in float32."""
    pairs = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
    real, imag = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    turned = mx.stack([real * cos - imag * sin, real * sin + imag * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _side(length: int, scale_rope: bool) -> range:
    return range(length // 2 - length, length // 2) if scale_rope else range(length)


def _tables(
    positions: list[tuple[int, int, int]], axes: tuple[int, int, int], theta: float
) -> tuple[mx.array, mx.array]:
    """Angles rounded to float32 where the reference rounds them (at token 4000 that is 1e-4)."""
    if not positions:
        empty = mx.zeros((0, sum(axes) // 2))
        return empty, empty
    with mx.stream(mx.cpu):  # the only device with float64
        index = mx.array(positions, dtype=mx.float32)
        angles = mx.concatenate(
            [
                index[:, axis, None] * _frequencies(size, theta)[None]
                for axis, size in enumerate(axes)
            ],
            axis=1,
        ).astype(mx.float64)
        tables = mx.cos(angles).astype(mx.float32), mx.sin(angles).astype(mx.float32)
        mx.eval(*tables)
    return tables


def _frequencies(size: int, theta: float) -> mx.array:
    exponents = mx.arange(0, size, 2, dtype=mx.float32) / size
    wide = mx.array(theta, dtype=mx.float64) ** exponents.astype(mx.float64)
    return 1 / wide.astype(mx.float32)
