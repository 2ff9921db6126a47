"""Makes the CPU MLX's default device in a test's child processes, as conftest.py does in its own.

Put on PYTHONPATH where the suite runs on macOS. MLX is not imported here, only watched for.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODULE = "mlx.core"


class _Loader:
    """MLX's own loader, and then the device."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._real.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        made: Any = module
        made.set_default_device(made.cpu)


class _Finder:
    """Finds MLX's core where it is."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


finder: Any = _Finder()
sys.meta_path.insert(0, finder)
