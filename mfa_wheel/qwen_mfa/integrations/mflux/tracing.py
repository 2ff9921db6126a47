"""What stands in for attention while a block is traced, on the tracing thread alone.

The host's module calls `attend` where it called MLX's function. Inside a trace that is what
`tracing` was given. Outside it is `qwen_mfa.scaled_dot_product_attention`, or what `elsewhere` was
given: attention over several processes.
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
    elsewhere: Callable[..., mx.array] | None = None


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


@contextmanager
def elsewhere(attention: Callable[..., mx.array] | None) -> Iterator[None]:
    """Let ``attention`` compute what is not traced on this thread, inside the ``with`` block.

    ``None`` is for what other processes have no part in: a block that is run once more, to compare.
    """
    before = _local.elsewhere
    _local.elsewhere = attention
    try:
        yield
    finally:
        _local.elsewhere = before


def computes_elsewhere() -> Callable[..., mx.array] | None:
    """Return what `elsewhere` was given; ``None`` outside."""
    return _local.elsewhere


def attend(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    """Compute attention as `qwen_mfa.scaled_dot_product_attention`, or stand in for it."""
    attention = _local.attention or _local.elsewhere
    if attention is not None:
        result: mx.array = attention(q, k, v, **options)
        return result
    return scaled_dot_product_attention(q, k, v, **options)
