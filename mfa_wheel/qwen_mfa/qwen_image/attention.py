"""Joint attention of Qwen-Image: text and image tokens, with weights of their own, attend to all.

Source: `QwenDoubleStreamAttnProcessor2_0` of diffusers 0.42. Parameters are named as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
from mlx import nn

from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.qwen_image.rope import rotate

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.qwen_image.rope import RopeTables

EPSILON = 1e-6


def joint_mask(text_mask: mx.array, image_tokens: int) -> mx.array:
    """Return a boolean mask over the joint keys; make it once and pass it to every block.

    Args:
        text_mask: ``[batch, text_tokens]``; nonzero marks a real token, zero a padded one.
        image_tokens: Image tokens that follow the text; all of them are visible.

    Returns:
        ``[batch, 1, 1, text_tokens + image_tokens]``, boolean, evaluated: so that attention can
        look at it without waiting, and drop the padded keys instead of masking them.

    Raises:
        ValueError: ``text_mask`` does not have two dimensions.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> qwen_image.joint_mask(mx.array([[1, 1, 0]]), 4).shape  # 3 text tokens, 4 of the image
        (1, 1, 1, 7)

    """
    if text_mask.ndim != 2:
        msg = f"text_mask must have the shape [batch, text_tokens], not {text_mask.shape}"
        raise ValueError(msg)
    image = mx.ones((text_mask.shape[0], image_tokens), dtype=mx.bool_)
    mask = mx.concatenate([text_mask != 0, image], axis=1)[:, None, None, :]
    try:
        mx.eval(mask)
    except (RuntimeError, ValueError):  # tracing: the mask stays part of the graph
        return mask
    return mask


class JointAttention(nn.Module):
    """Joint attention over ``[text, image]`` with RMSNorm on q and k of every head, and RoPE.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> attention = qwen_image.JointAttention(dim=32, heads=2, head_dim=16)
        >>> tables = qwen_image.rope_tables([(1, 2, 2)], 3, axes=(4, 6, 6))
        >>> image, text = mx.zeros((1, 4, 32)), mx.zeros((1, 3, 32))
        >>> [x.shape for x in attention(image, text, rope=tables)]
        [(1, 4, 32), (1, 3, 32)]

    """

    def __init__(self, *, dim: int = 3072, heads: int = 24, head_dim: int = 128) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
        inner = heads * head_dim
        self.heads = heads
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.add_q_proj = nn.Linear(dim, inner)
        self.add_k_proj = nn.Linear(dim, inner)
        self.add_v_proj = nn.Linear(dim, inner)
        self.norm_q = nn.RMSNorm(head_dim, eps=EPSILON)
        self.norm_k = nn.RMSNorm(head_dim, eps=EPSILON)
        self.norm_added_q = nn.RMSNorm(head_dim, eps=EPSILON)
        self.norm_added_k = nn.RMSNorm(head_dim, eps=EPSILON)
        self.to_out = [nn.Linear(inner, dim)]
        self.to_add_out = nn.Linear(inner, dim)
        # The switch to the reference: any function with the signature of mx.fast's.
        self.attend: Callable[..., mx.array] = scaled_dot_product_attention

    def __call__(
        self,
        image: mx.array,
        text: mx.array,
        *,
        rope: RopeTables,
        mask: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Attend; nothing is evaluated here.

        Args:
            image: ``[batch, image_tokens, dim]``, float32, float16 or bfloat16.
            text: ``[batch, text_tokens, dim]``, same dtype.
            rope: Tables for exactly these numbers of tokens.
            mask: As `joint_mask` returns it, or ``None`` when no text is padded.

        Returns:
            The outputs for image and text, in the shapes and dtype of the inputs.

        Raises:
            ValueError: The tables are for other numbers of tokens.

        """
        _check_tables(rope, image.shape[1], text.shape[1])
        text_q, text_k, text_v = (
            self._heads(linear(text))
            for linear in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        image_q, image_k, image_v = (
            self._heads(linear(image)) for linear in (self.to_q, self.to_k, self.to_v)
        )
        text_q = rotate(self.norm_added_q(text_q), rope.text_cos, rope.text_sin)
        text_k = rotate(self.norm_added_k(text_k), rope.text_cos, rope.text_sin)
        image_q = rotate(self.norm_q(image_q), rope.image_cos, rope.image_sin)
        image_k = rotate(self.norm_k(image_k), rope.image_cos, rope.image_sin)
        out = self.attend(
            mx.concatenate([text_q, image_q], axis=1).transpose(0, 2, 1, 3),
            mx.concatenate([text_k, image_k], axis=1).transpose(0, 2, 1, 3),
            mx.concatenate([text_v, image_v], axis=1).transpose(0, 2, 1, 3),
            scale=self.head_dim**-0.5,
            mask=mask,
        )
        joint = out.transpose(0, 2, 1, 3).reshape(*out.shape[:1], out.shape[2], -1)
        boundary = text.shape[1]
        return self.to_out[0](joint[:, boundary:]), self.to_add_out(joint[:, :boundary])

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-1], self.heads, self.head_dim)


def _check_tables(rope: RopeTables, image_tokens: int, text_tokens: int) -> None:
    have = rope.image_cos.shape[0], rope.text_cos.shape[0]
    if have != (image_tokens, text_tokens):
        msg = (
            f"the RoPE tables are for {have[0]} image and {have[1]} text tokens, the inputs have "
            f"{image_tokens} and {text_tokens}: make them with rope_tables for these inputs"
        )
        raise ValueError(msg)
