"""What stands in for attention while a block is traced, on the tracing thread alone.

The host's module calls `attend` where it called MLX's function. Outside a trace that is
`qwen_mfa.scaled_dot_product_attention`, and nothing else; inside it is what `tracing` was given.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qwen_mfa.attention import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import mlx.core as mx


class Opaque:
    """Stands for an argument that a block only hands on: any other use of it raises."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Local(threading.local):
    attention: Callable[..., Any] | None = None


_local = _Local()


@contextmanager
def tracing(attention: Callable[..., Any]) -> Iterator[None]:
    """Let `attend` be ``attention`` on this thread, inside the ``with`` block."""
    before = _local.attention
    _local.attention = attention
    try:
        yield
    finally:
        _local.attention = before


def attend(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    """Compute attention as `qwen_mfa.scaled_dot_product_attention`, or stand in for it."""
    attention = _local.attention
    if attention is not None:
        result: mx.array = attention(q, k, v, **options)
        return result
    return scaled_dot_product_attention(q, k, v, **options)
