"""A module's parameters as a flat list, and a private copy of its structure to put others into.

Two modules of equal structure (classes, settings, names of parameters) compute the same function of
their parameters, so that one graph with the parameters as inputs serves both. The copy is ours: the
host's modules are read and never changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Structure = list[Any]

_SIMPLE = (bool, int, float, str, type(None))


def read(module: nn.Module) -> tuple[list[mx.array], Structure]:
    """Return the arrays of ``module`` in a fixed order, and all else that its results depend on.

    It is called for every block of every pass, so that it is one plain loop: some 20 microseconds.
    """
    arrays: list[mx.array] = []
    structure: Structure = []
    _read(module, arrays, structure)
    return arrays, structure


def _read(item: Any, arrays: list[mx.array], structure: Structure) -> None:
    kind = type(item)
    structure.append(kind)
    if isinstance(item, dict) and isinstance(item, nn.Module):
        for name, value in item.__dict__.items():
            if name != "_no_grad":
                structure.append(value if type(value) in _SIMPLE else _stands_for(value))
    for name, value in _children(item):
        structure.append(name)
        if type(value) is mx.array:
            arrays.append(value)
        elif isinstance(value, (dict, list, tuple)):
            _read(value, arrays, structure)
        else:
            structure.append(value if type(value) in _SIMPLE else _stands_for(value))


def _stands_for(value: Any) -> Any:
    """Return what must be equal for two values that are no plain ones to be the same setting.

    Objects that are nothing but a class and plain attributes count by these: mflux gives each
    module a precision of its own. Anything else counts by its identity.
    """
    kind = type(value)
    if kind is mx.Dtype:
        return str(value)  # comparing one with anything else raises
    if kind.__bases__ == (object,) and not callable(value):
        own = getattr(value, "__dict__", None)
        if own and all(type(x) in _SIMPLE or type(x) is mx.Dtype for x in own.values()):
            return kind, *((n, x if type(x) in _SIMPLE else str(x)) for n, x in own.items())
    return id(value)


def describe(item: Any) -> Any:
    """Return the structure of a module as text and numbers that another process has, too."""
    if type(item) is mx.array:
        return str(item.dtype), item.shape
    if isinstance(item, (dict, list, tuple)):
        own = item.__dict__.items() if isinstance(item, nn.Module) else ()
        plain = [(n, v) for n, v in own if type(v) in _SIMPLE]
        # Not identities, which another process does not have.
        plain += [
            (n, repr(found))
            for n, v in own
            if type(v) not in _SIMPLE and type(found := _stands_for(v)) is not int
        ]
        return type(item).__name__, plain, [(n, describe(v)) for n, v in _children(item)]
    return item if type(item) in _SIMPLE else type(item).__name__


def _children(item: Any) -> Iterable[tuple[Any, Any]]:
    return item.items() if isinstance(item, dict) else enumerate(item)


def copy(item: Any) -> Any:
    """Return a copy of a module's structure; where the arrays were is ``None``."""
    if type(item) is mx.array:
        return None
    if isinstance(item, nn.Module):
        new = shallow(item)
        for name, value in item.items():
            dict.__setitem__(new, name, copy(value))
        return new
    if isinstance(item, dict):
        return {name: copy(value) for name, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [copy(value) for value in item]
    return item


def shallow(module: nn.Module) -> Any:
    """Return a module of the same class that holds the same values."""
    new = type(module).__new__(type(module))
    new.__dict__.update(module.__dict__)
    dict.update(new, module)
    return new


def fill(item: Any, like: Any, arrays: Iterator[Any]) -> None:
    """Put ``arrays`` where ``like``, the module that ``item`` is a copy of, has its arrays."""
    for name, value in _children(like):
        if type(value) is mx.array:
            # Not by attribute: a module's own may look at what it is given.
            (dict if isinstance(item, dict) else list).__setitem__(item, name, next(arrays))
        elif isinstance(value, (dict, list, tuple)):
            fill(item[name], value, arrays)
