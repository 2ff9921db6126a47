"""Attention for Qwen-Image in MLX: a native kernel where it is proved and faster, MLX's elsewhere.

Importing this package opens no library and asks no device; that happens on the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_mfa.errors import (
    HostError,
    LibraryError,
    NativeError,
    QwenMfaError,
    RunError,
    WeightsError,
)

if TYPE_CHECKING:
    from qwen_mfa.attention import scaled_dot_product_attention

    __version__: str

__all__ = [
    "HostError",
    "LibraryError",
    "NativeError",
    "QwenMfaError",
    "RunError",
    "WeightsError",
    "__version__",
    "scaled_dot_product_attention",
]


def __getattr__(name: str) -> object:
    """Load the operation (and with it MLX) and the version only when they are asked for."""
    if name == "scaled_dot_product_attention":
        from qwen_mfa.attention import scaled_dot_product_attention  # noqa: PLC0415

        globals()[name] = scaled_dot_product_attention
        return scaled_dot_product_attention
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("qwen-mfa")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
