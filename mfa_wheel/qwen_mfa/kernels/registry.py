"""The kernels by name, loaded when asked for: a machine seldom needs all of them.

Here and not among the candidates of selection, because validation's child process, which selection
uses, has to find a kernel by its name, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Kernel

# In order of preference: module, and attribute where the module is not itself the kernel.
_PLACES = {
    "metal": ("qwen_mfa.kernels.metal", "accurate"),
    "metal-low": ("qwen_mfa.kernels.metal", "low"),
    "cpu": ("qwen_mfa.kernels.cpu", ""),
    "mlx-fp16": ("qwen_mfa.kernels.mlx_fp16", ""),
}
# Every kernel that there is, MLX's own included.
NAMES = ("mlx", *_PLACES)


def named(name: str) -> Kernel | None:
    """Return the kernel called ``name``, if there is one beside MLX's."""
    if name not in _PLACES:
        return None
    module, attribute = _PLACES[name]
    found = import_module(module)
    return cast("Kernel", getattr(found, attribute) if attribute else found)


def others() -> tuple[Kernel, ...]:
    """Return the kernels that may stand in for MLX's, in order of preference."""
    return tuple(kernel for kernel in map(named, _PLACES) if kernel is not None)
