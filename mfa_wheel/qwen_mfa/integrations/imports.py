"""An import hook: be told when certain modules have been imported, without importing them."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class Hook(MetaPathFinder):
    """Calls ``on_imported`` with each module of ``names``, right after its code has run."""

    def __init__(self, names: Collection[str], on_imported: Callable[[ModuleType], None]) -> None:
        self.names = frozenset(names)
        self.on_imported = on_imported

    def install(self) -> None:
        """Start to listen, ahead of all other finders."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop listening. Imports that are under way stay silent too."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find the module, and stand in front of its loader."""
        if fullname not in self.names:
            return None
        for finder in [f for f in sys.meta_path if f is not self]:
            find = getattr(finder, "find_spec", None)  # importlib passes over those without, too
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Observer(spec.loader, self)
                return spec
        return None


class _Observer(Loader):
    """Delegates to the real loader, gives it back to the module, then reports."""

    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._hook in sys.meta_path:
            self._hook.on_imported(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
