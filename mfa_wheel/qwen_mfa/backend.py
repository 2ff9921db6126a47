"""Whether MLX works here: on Linux its package has no backend of its own, and some need a driver.

Everything else of this package needs MLX; this module, the command line's frame and `qwen_mfa`
itself do not, so that they can say what is missing.
"""

from __future__ import annotations

import functools
import importlib
import sys

from qwen_mfa.errors import MLXError

SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch
CPU = 'pip install "mlx[cpu]"'
MAC = "pip install --force-reinstall mlx mlx-metal"


@functools.cache
def problem() -> str:
    """Return why MLX does not work here and what to do about it, or an empty string."""
    try:
        importlib.import_module("mlx.core")
    except (ImportError, OSError, RuntimeError) as error:
        return _sentence(error)
    return ""


def require() -> None:
    """Raise unless MLX works.

    Raises:
        MLXError: It does not; the text says what to install.

    """
    found = problem()
    if found:
        raise MLXError(found)


def _sentence(error: Exception) -> str:
    if SYSTEM == "darwin":
        return f"MLX does not work here ({error}): {MAC}"
    cuda = [name for name in ("mlx-cuda-12", "mlx-cuda-13") if _installed(name)]
    if cuda:
        return (
            f"MLX's backend {cuda[0]} does not work here ({error}): install NVIDIA's driver; or, "
            f"for the CPU, in a new environment: {CPU}"
        )
    return f"MLX has no backend here: {CPU}, or cuda12, cuda13 instead of cpu for an NVIDIA GPU"


def _installed(name: str) -> bool:
    from importlib import metadata  # noqa: PLC0415 - slow to import

    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
