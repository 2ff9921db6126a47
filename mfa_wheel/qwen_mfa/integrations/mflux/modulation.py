"""The modulation vectors of Qwen-Image's blocks, which depend on the timestep alone.

A third of the transformer's parameters computes them, from nothing but the timestep's embedding.
Both passes of a step have the same timestep: what the first pass computed serves the second, bit
for bit. A store lives as long as one step, so that nothing outlives a change of the weights.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.integrations.mflux import skeleton
from qwen_mfa.integrations.mflux.cut import Given, HandOn
from qwen_mfa.integrations.mflux.tracing import Opaque

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlx import nn

# The block's arguments that carry an embedding, and which of its modules each goes through.
EMBEDDINGS = {"text_embeddings": ("img", "txt"), "cond_embeddings": ("img",)}
MODULES = tuple(f"{stream}_mod_{part}" for stream in ("img", "txt") for part in ("silu", "linear"))
Given_ = dict[str, mx.array]


class Store:
    """What the blocks computed in one step.

    Attributes:
        values: By the block's identity.
        shared: Blocks whose vectors were taken from here.

    """

    def __init__(self) -> None:
        """Start with nothing computed."""
        self.values: dict[int, Given_] = {}
        self.shared: set[int] = set()


class _Local(threading.local):
    store: Store | None = None
    watcher: Callable[[dict[str, Any]], None] | None = None


_local = _Local()


@contextmanager
def sharing(store: Store | None) -> Iterator[None]:
    """Let blocks on this thread keep their modulation in ``store`` and take it from there.

    With ``None`` they compute it anew.
    """
    before = _local.store
    _local.store = store
    try:
        yield
    finally:
        _local.store = before


@contextmanager
def watching(watcher: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Show ``watcher`` the arguments of each block that runs on this thread, before it does."""
    before = _local.watcher
    _local.watcher = watcher
    try:
        yield
    finally:
        _local.watcher = before


def show(arguments: dict[str, Any]) -> None:
    """Show a block's arguments to whoever is `watching`."""
    if _local.watcher is not None:
        _local.watcher(arguments)


def is_shared() -> bool:
    """Whether this thread is inside `sharing`."""
    return _local.store is not None


def of(block: nn.Module, arguments: dict[str, Any]) -> Given_:
    """Return the block's modulation vectors, by the host's own modules or from this step's store.

    Names are ``argument/module``, such as ``text_embeddings/img``; each is ``[B, 6 * dim]``.
    """
    store = _local.store
    if store is not None:
        # The model holds its blocks during a step, so that their identities are theirs alone.
        found = store.values.get(id(block))
        if found is not None:
            store.shared.add(id(block))
            return found
    made = {
        f"{argument}/{name}": block[f"{name}_mod_linear"](block[f"{name}_mod_silu"](embedding))
        for argument, names in EMBEDDINGS.items()
        if (embedding := arguments.get(argument)) is not None
        for name in names
    }
    if store is not None:
        store.values[id(block)] = made
    return made


def without(block: nn.Module) -> Any:
    """Return a copy of ``block`` that shares all but its modulation's modules, which it lacks.

    What is left computes the same whether modulation is computed, shared or let go.
    """
    bare = skeleton.shallow(block)
    for name in MODULES:
        dict.pop(bare, name, None)
    return bare


@contextmanager
def as_of(block: nn.Module, twin: nn.Module) -> Iterator[None]:
    """Let ``twin``, a copy of ``block``, have the block's modulation in this thread's store."""
    store = _local.store
    if store is None:
        yield
        return
    store.values[id(twin)] = store.values[id(block)]
    try:
        yield
    finally:
        del store.values[id(twin)]
        store.shared.discard(id(twin))


TOKENS = {argument: Opaque(argument) for argument in EMBEDDINGS}


def stubs(given: Given_) -> dict[str, Any]:
    """Return the modules that stand for a block's modulation where its results are ``given``."""
    made: dict[str, Any] = {}
    for name in ("img", "txt"):
        values = {
            TOKENS[argument]: given[f"{argument}/{name}"]
            for argument in EMBEDDINGS
            if f"{argument}/{name}" in given
        }
        made |= {f"{name}_mod_silu": HandOn(), f"{name}_mod_linear": Given(values)}
    return made
