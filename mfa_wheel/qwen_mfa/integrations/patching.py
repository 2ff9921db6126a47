"""A seam: one attribute of a host's module or class that an integration replaces and gives back."""

from __future__ import annotations

import ast
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_mfa import forks
from qwen_mfa.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

logger = logging.getLogger("qwen_mfa")

ABSENT: Any = object()
# Before Python 3.12, syntax trees that several threads make at once can fail with a SystemError.
_parsing = forks.lock()


@dataclass(frozen=True, kw_only=True)
class Seam:
    """One attribute to replace.

    Attributes:
        module: The module's full name.
        attribute: Name in the module, or ``Class.name``.
        check_source: Takes the module's syntax tree; returns what about it is not as expected, in
            words, or ``None``. It sees the seam before the module is imported.
        check_value: Takes the attribute's value (`ABSENT` for none) and does the same.
        replacement: Makes the new value from the old one.

    """

    module: str
    attribute: str
    check_source: Callable[[ast.Module], str | None]
    check_value: Callable[[Any], str | None]
    replacement: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


@dataclass(kw_only=True)
class Binding:
    """A seam that is in place: what was there, what is there now."""

    seam: Seam
    owner: Any
    original: Any = field(repr=False)
    replacement: Any = field(repr=False)

    @property
    def name(self) -> str:
        """The attribute's own name."""
        return self.seam.attribute.rpartition(".")[2]

    def foreign(self) -> bool:
        """Whether somebody else has replaced the attribute since."""
        return self.owner.__dict__.get(self.name, ABSENT) is not self.replacement

    def undo(self) -> None:
        """Give the attribute back."""
        if self.original is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


def prepare(seam: Seam, module: ModuleType) -> Binding:
    """Look at a seam of an imported module; nothing is changed.

    Raises:
        HostError: The attribute is not there yet, not what is expected, or not the host's own.

    """
    path, _, name = seam.attribute.rpartition(".")
    owner = getattr(module, path, None) if path else module
    if owner is None:
        reason: str | None = f"it has no {path}"
    else:
        original = owner.__dict__.get(name, ABSENT)
        reason = seam.check_value(original)
        if reason is None:
            new = seam.replacement(original)
            return Binding(seam=seam, owner=owner, original=original, replacement=new)
    msg = f"{seam} cannot be replaced: {reason}. Nothing was changed."
    raise HostError(msg)


def is_being_imported(module: ModuleType) -> bool:
    """Whether the module's code is still running, here or on another thread."""
    # importlib keeps this for its own use since Python 3.3; without it, nothing seems under way.
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def apply(bindings: list[Binding]) -> None:
    """Put every replacement in place. Setting a module's or class's attribute cannot fail."""
    for binding in bindings:
        setattr(binding.owner, binding.name, binding.replacement)


def check_source(seam: Seam, file: Path) -> str | None:
    """Return why the seam does not fit the source in ``file``, or ``None``."""
    try:
        text = file.read_text(encoding="utf-8")
        with _parsing:
            tree = ast.parse(text, filename=str(file))
    except (OSError, SyntaxError, ValueError) as error:
        return f"{file} cannot be read ({error})"
    return seam.check_source(tree)


def imports_by_name(
    module: str, name: str, *, keywords: set[str]
) -> Callable[[ast.Module], str | None]:
    """Check that a source has ``from module import name`` and calls it with known arguments only.

    Args:
        module: Where the name comes from.
        name: The function; each call must have three positional arguments.
        keywords: The keyword arguments that the replacement understands.

    """

    def check(tree: ast.Module) -> str | None:
        bound = [
            alias
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == module and node.level == 0
            for alias in node.names
            if alias.name == name and alias.asname in {None, name}
        ]
        if not bound:
            return f"it no longer has `from {module} import {name}`"
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id != name:
                continue
            known = {keyword.arg for keyword in node.keywords} <= keywords
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            if not known or starred or len(node.args) != 3:
                return f"line {node.lineno} calls {name} in an unknown way: {ast.unparse(node)}"
        return None

    return check


def has_method(
    owner: str, method: str, arguments: tuple[str, ...], *, body: str = ""
) -> Callable[[ast.Module], str | None]:
    """Check that a class has a method with exactly these arguments, and ``body`` in its source."""

    def check(tree: ast.Module) -> str | None:
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner]
        for node in (n for c in classes for n in c.body if isinstance(n, ast.FunctionDef)):
            if node.name != method:
                continue
            spec = node.args
            found = tuple(a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs))
            if found != arguments or spec.vararg or spec.kwarg:
                return f"{owner}.{method} takes {', '.join(found)}; not {', '.join(arguments)}"
            if body not in ast.unparse(node):
                return f"{owner}.{method} no longer does `{body}`"
            return None
        return f"it has no {owner}.{method}"

    return check
