"""A block cut at its attention: two compiled graphs of the host's own code, and a kernel between.

A native kernel needs evaluated inputs and cannot run inside ``mx.compile``, which is what fuses
norms, modulation, rotary embedding, gates and activations. So the host's ``__call__`` is traced
twice: once up to its attention, which gives q, k and v; once with an attention that returns an
input. What the first half computed for attention alone is unused in the second, and falls away.
Parameters are inputs of both graphs, so that one pair serves all blocks of equal structure.

What this relies on is checked while tracing: the block calls attention exactly once, with a scale
that does not depend on the data; nothing asks the device for a value; masks and block numbers are
only handed on. Anything else raises `CutError`, and the block runs as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks
from qwen_mfa.attention import scaled_dot_product_attention
from qwen_mfa.integrations.mflux import skeleton
from qwen_mfa.integrations.mflux.tracing import Opaque, computes_elsewhere, tracing

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx import nn

    Tree = Any


class CutError(Exception):
    """This block cannot be cut; the text says why."""


class _Reached(Exception):  # noqa: N818 - it is no error: the first half ends at attention
    def __init__(self, outputs: list[mx.array]) -> None:
        self.outputs = outputs


class Given:
    """Stands for a module whose results are known: maps each opaque input to its array."""

    def __init__(self, values: dict[Opaque, Any]) -> None:
        """Know ``values``."""
        self._values = values

    def __call__(self, x: Any) -> Any:
        """Return what belongs to ``x``."""
        try:
            return self._values[x]
        except (KeyError, TypeError):
            msg = f"it applies its modulation to {x!r}"
            raise CutError(msg) from None


class HandOn:
    """Stands for an activation before a `Given` module."""

    def __call__(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class Halves:
    """Both graphs for one structure and one set of input shapes.

    Attributes:
        seconds: What the first call cost, compilation included; 0 before it.

    """

    def __init__(
        self,
        call: Callable[..., Any],
        block: nn.Module,
        stubs: Callable[[dict[str, Any]], dict[str, Any]],
        static: dict[str, Any],
    ) -> None:
        """Prepare to trace; nothing is traced before the first call.

        Args:
            call: The host's own ``__call__``, as a function of the block and keyword arguments.
            block: One of the structure's blocks; only its structure is kept.
            stubs: Makes the modules that stand for modulation from the given arrays.
            static: Keyword arguments that are no arrays: ``None`` and `Opaque` ones.

        """
        self._call = call
        self._like = skeleton.copy(block)
        self._shape = _arrays_marked(block)
        self._stubs = stubs
        self._static = static
        self._lock = forks.reentrant_lock()
        self._first = mx.compile(self._until_attention)
        self._second = mx.compile(self._after_attention)
        self._scale: float | None = None
        self._mask: Any = None
        self.seconds = 0.0

    def __call__(
        self,
        parameters: list[mx.array],
        given: dict[str, mx.array],
        inputs: dict[str, Tree],
        convert_mask: Callable[[mx.array, mx.array], Any],
    ) -> Tree:
        """Compute the block.

        Args:
            parameters: From `skeleton.read`.
            given: Modulation by name.
            inputs: Keyword arguments that are arrays, or trees of them.
            convert_mask: Makes attention's mask from k and q where the host hands on an opaque one.

        Raises:
            CutError: The host's block cannot be cut.

        """
        with self._lock:  # tracing fills the one copy of the structure
            q, k, v, *mask = self._first(parameters, given, inputs)
        if mask:
            hidden = mask[0]
        elif isinstance(self._mask, Opaque):
            hidden = convert_mask(q, k)
        else:
            hidden = self._mask
        attention = computes_elsewhere() or scaled_dot_product_attention
        result = attention(q, k, v, scale=self._scale or 0.0, mask=hidden)
        with self._lock:
            return self._second(parameters, given, inputs, result)

    def _until_attention(
        self, parameters: list[mx.array], given: dict[str, mx.array], inputs: dict[str, Tree]
    ) -> list[mx.array]:
        def reached(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
            self._scale, mask = _scale_and_mask(**options)
            self._mask = None if isinstance(mask, mx.array) else mask
            raise _Reached([q, k, v, *([mask] if isinstance(mask, mx.array) else [])])

        try:
            self._run(parameters, given, inputs, reached)
        except _Reached as end:
            return end.outputs
        msg = "it never calls attention"
        raise CutError(msg)

    def _after_attention(
        self,
        parameters: list[mx.array],
        given: dict[str, mx.array],
        inputs: dict[str, Tree],
        result: mx.array,
    ) -> Tree:
        calls = 0

        def known(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
            nonlocal calls
            calls += 1
            expected = (*q.shape[:-1], v.shape[-1])
            scale, _ = _scale_and_mask(**options)
            if calls > 1 or k.shape[1] != v.shape[1] or result.shape != expected:
                msg = "it calls attention more than once"
                raise CutError(msg)
            if scale != self._scale:
                msg = "its attention's scale changes"
                raise CutError(msg)
            return result

        return self._run(parameters, given, inputs, known)

    def _run(
        self,
        parameters: list[mx.array],
        given: dict[str, mx.array],
        inputs: dict[str, Tree],
        attention: Callable[..., Any],
    ) -> Tree:
        """Run the host's code on the copy, which holds the traced parameters meanwhile."""
        skeleton.fill(self._like, self._shape, iter(parameters))
        block = skeleton.shallow(self._like)
        dict.update(block, self._stubs(given))
        try:
            with tracing(attention):
                return self._call(block, **inputs, **self._static)
        finally:
            skeleton.fill(self._like, self._shape, iter([None] * len(parameters)))


def _arrays_marked(item: Any) -> Any:
    """Return the structure with one small array in place of each: where `skeleton.fill` puts some.

    The block's own arrays are not kept: they may be replaced, and their memory given back.
    """
    if type(item) is mx.array:
        return mx.zeros(())
    if isinstance(item, dict):
        return {name: _arrays_marked(value) for name, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_arrays_marked(value) for value in item]
    return item


def _scale_and_mask(*, scale: Any, mask: Any = None, **more: Any) -> tuple[float, Any]:
    if any(value is not None for value in more.values()):
        msg = "its attention takes more than q, k, v, a scale and a mask"
        raise CutError(msg)
    try:
        return float(scale), mask  # some hosts make an array of it, from sizes alone
    except (TypeError, ValueError, RuntimeError):
        msg = "its attention's scale is only known once the data is"
        raise CutError(msg) from None
