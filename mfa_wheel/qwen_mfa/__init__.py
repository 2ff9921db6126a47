"""Attention for Qwen-Image in MLX: a native kernel where it is right and faster, else MLX's.

Importing this package opens no library and asks no device; that happens on the first use.

Public are the names here, and those of `qwen_mfa.qwen_image` and `qwen_mfa.integrations.mflux`.
Every other module may change in any release.
"""

from __future__ import annotations

from qwen_mfa.errors import (
    BackendError,
    HostError,
    LibraryError,
    MLXError,
    NativeError,
    QwenMfaError,
    RefusedError,
    RunError,
    SettingError,
    WeightsError,
)
from qwen_mfa.firstuse import first_use

TYPE_CHECKING = False  # as type checkers know it, without the cost of importing typing
if TYPE_CHECKING:
    from qwen_mfa.attention import scaled_dot_product_attention
    from qwen_mfa.selection.override import use
    from qwen_mfa.telemetry import Event, Stats, stats, subscribe

    __version__: str

__all__ = [
    "BackendError",
    "Event",
    "HostError",
    "LibraryError",
    "MLXError",
    "NativeError",
    "QwenMfaError",
    "RefusedError",
    "RunError",
    "SettingError",
    "Stats",
    "WeightsError",
    "__version__",
    "scaled_dot_product_attention",
    "stats",
    "subscribe",
    "use",
]

# Loaded when asked for, so that importing the package costs next to nothing.
_LAZY = {
    "Event": "telemetry",
    "Stats": "telemetry",
    "scaled_dot_product_attention": "attention",
    "stats": "telemetry",
    "subscribe": "telemetry",
    "use": "selection.override",
}
_NEED_MLX = {"scaled_dot_product_attention", "stats", "use"}
# Reachable as attributes; those with modules of their own come with these.
_PACKAGES = {"integrations": "integrations.mflux", "qwen_image": "qwen_image"}


def __getattr__(name: str) -> object:
    """Load what is asked for: the operation brings MLX with it, and needs it to work."""
    if name in _LAZY:
        with first_use:
            from importlib import import_module  # noqa: PLC0415

            if name in _NEED_MLX:
                from qwen_mfa import backend  # noqa: PLC0415

                backend.require()
            found: object = getattr(import_module(f"qwen_mfa.{_LAZY[name]}"), name)
        globals()[name] = found
        return found
    if name in _PACKAGES:
        from importlib import import_module  # noqa: PLC0415

        import_module(f"qwen_mfa.{_PACKAGES[name]}")
        return import_module(f"qwen_mfa.{name}")
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("qwen-mfa")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*__all__, *_PACKAGES})
