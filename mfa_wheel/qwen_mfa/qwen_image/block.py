"""One transformer block of Qwen-Image: two streams, modulated by the time embedding.

Source: `QwenImageTransformerBlock` of diffusers 0.42. Parameters are named as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import mlx.core as mx
from mlx import nn

from qwen_mfa.qwen_image.attention import EPSILON, JointAttention

if TYPE_CHECKING:
    from qwen_mfa.qwen_image.rope import RopeTables


class GeluProjection(nn.Module):
    """A linear layer with tanh-approximated GELU; the first half of the feed-forward network."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
        self.proj = nn.Linear(dim, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """Project ``[..., dim]`` to ``[..., hidden]``."""
        result: mx.array = nn.gelu_approx(self.proj(x))
        return result


class FeedForward(nn.Module):
    """Two linear layers with a GELU; ``net.1`` is the place of the published model's dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
        self.net = [GeluProjection(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``[..., dim]`` to ``[..., dim]``."""
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Modulated joint attention, then a feed-forward network for each stream.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> block = qwen_image.TransformerBlock(dim=32, heads=2, head_dim=16)
        >>> tables = qwen_image.rope_tables([(1, 2, 2)], 3, axes=(4, 6, 6))
        >>> image, text, time = mx.zeros((1, 4, 32)), mx.zeros((1, 3, 32)), mx.zeros((1, 32))
        >>> [x.shape for x in block(image, text, time, rope=tables)]
        [(1, 4, 32), (1, 3, 32)]

    """

    def __init__(self, *, dim: int = 3072, heads: int = 24, head_dim: int = 128) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
        self.img_mod = [nn.SiLU(), nn.Linear(dim, 6 * dim)]
        self.txt_mod = [nn.SiLU(), nn.Linear(dim, 6 * dim)]
        self.attn = JointAttention(dim=dim, heads=heads, head_dim=head_dim)
        self.img_mlp = FeedForward(dim)
        self.txt_mlp = FeedForward(dim)

    def __call__(
        self,
        image: mx.array,
        text: mx.array,
        time: mx.array,
        *,
        rope: RopeTables,
        mask: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Return image and text after this block; nothing is evaluated here.

        Args:
            image: ``[batch, image_tokens, dim]``, float32, float16 or bfloat16.
            text: ``[batch, text_tokens, dim]``, same dtype.
            time: Embedding of the time step, ``[batch, dim]``.
            rope: Tables for exactly these numbers of tokens.
            mask: As `joint_mask` returns it, or ``None`` when no text is padded.

        """
        image_attn, image_ff = mx.split(_through(self.img_mod, time), 2, axis=-1)
        text_attn, text_ff = mx.split(_through(self.txt_mod, time), 2, axis=-1)
        image_in, image_gate = _modulate(image, image_attn)
        text_in, text_gate = _modulate(text, text_attn)
        image_out, text_out = self.attn(image_in, text_in, rope=rope, mask=mask)
        image = image + image_gate * image_out
        text = text + text_gate * text_out
        image_in, image_gate = _modulate(image, image_ff)
        text_in, text_gate = _modulate(text, text_ff)
        return (
            image + image_gate * self.img_mlp(image_in),
            text + text_gate * self.txt_mlp(text_in),
        )


def _through(layers: list[nn.Module], x: mx.array) -> mx.array:
    for layer in layers:
        x = cast("mx.array", layer(x))
    return x


def _modulate(x: mx.array, parameters: mx.array) -> tuple[mx.array, mx.array]:
    """Normalise ``x``, shift and scale it; return that and the gate for what comes of it."""
    shift, scale, gate = (part[:, None] for part in mx.split(parameters, 3, axis=-1))
    return mx.fast.layer_norm(x, None, None, EPSILON) * (1 + scale) + shift, gate
