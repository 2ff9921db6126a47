"""The problems that benchmarks speak of: Qwen-Image's by name, any other by numbers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import mlx.core as mx

from qwen_mfa.cli.sample import DTYPES, PADDED, TEXT_TOKENS
from qwen_mfa.kernels.base import Call

MASKS = ("none", "padding", "causal")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """B, H, Sq, Skv, D of self- or cross-attention."""

    name: str
    batch: int
    heads: int
    seq_q: int
    seq_kv: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Operations of the two products: 4 · B · H · Sq · Skv · D."""
        return 4 * self.batch * self.heads * self.seq_q * self.seq_kv * self.head_dim

    def sizes(self) -> dict[str, int]:
        """Return the numbers by their usual names."""
        return {
            "B": self.batch,
            "H": self.heads,
            "Sq": self.seq_q,
            "Skv": self.seq_kv,
            "D": self.head_dim,
        }


def _qwen(name: str, image_tokens: int) -> Shape:
    tokens = image_tokens + TEXT_TOKENS
    return Shape(name=name, batch=1, heads=24, seq_q=tokens, seq_kv=tokens, head_dim=128)


# Pixels / 16 a side, squared: Qwen-Image's latents are patched 2 x 2 at an eighth of the size.
NAMED = {
    "qwen-512": _qwen("qwen-512", 32 * 32),
    "qwen-1024": _qwen("qwen-1024", 64 * 64),
    "qwen-1328": _qwen("qwen-1328", 83 * 83),
    "qwen-2048": _qwen("qwen-2048", 128 * 128),
}


def parse(text: str) -> Shape:
    """Read a name of `NAMED`, or ``B,H,SQ,SKV,D``."""
    if text in NAMED:
        return NAMED[text]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or min(numbers) < 1:
        known = ", ".join(NAMED)
        msg = f"{text!r} is neither one of {known} nor five positive numbers B,H,SQ,SKV,D"
        raise argparse.ArgumentTypeError(msg)
    batch, heads, seq_q, seq_kv, head_dim = numbers
    return Shape(name=text, batch=batch, heads=heads, seq_q=seq_q, seq_kv=seq_kv, head_dim=head_dim)


def draw(shape: Shape, dtype: str, mask: str) -> Call:
    """Draw evaluated inputs, laid out as hosts have them: BSHD memory seen as BHSD."""
    keys = mx.random.split(mx.random.key(7), 3)

    def one(length: int, key: mx.array) -> mx.array:
        dense = (shape.batch, length, shape.heads, shape.head_dim)
        return mx.random.normal(dense, key=key).astype(DTYPES[dtype]).transpose(0, 2, 1, 3)

    hidden: mx.array | str | None = None
    if mask == "causal":
        hidden = "causal"
    elif mask == "padding":
        # Joint order is text first; the text's tail is padding.
        position = mx.arange(shape.seq_kv)
        text = min(TEXT_TOKENS, shape.seq_kv // 2)
        padded = min(PADDED, text // 2)
        hidden = mx.logical_not((position >= text - padded) & (position < text))[None, None, None]
    q, k, v = (
        one(n, key) for n, key in zip((shape.seq_q, shape.seq_kv, shape.seq_kv), keys, strict=True)
    )
    call = Call(q=q, k=k, v=v, scale=shape.head_dim**-0.5, mask=hidden)
    mx.eval(call.arrays())
    return call
