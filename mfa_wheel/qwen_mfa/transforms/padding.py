"""Masks that only hide padded keys: drop those keys from K and V instead. Exact, and no mask.

Hidden keys have a weight of exactly zero, so leaving them out changes the result by no more than
the order of additions does. (If padded keys or values hold NaN, a mask may let it through; dropping
them does not.)

A mask qualifies when all queries and heads share it, its values are zero (visible) or so negative
that a key's weight underflows to zero, and every row of the batch has a few runs of visible keys.
Rows of different lengths are computed one after the other, each with its own keys.

The mask's contents are looked at on every call: a few kilobytes, tens of microseconds. A mask that
was evaluated before needs no waiting; for a lazy one see `qwen_mfa.transforms.masks`. Whether the
keys are then really left out is measured: `qwen_mfa.selection.removal`.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import mlx.core as mx

from qwen_mfa import exits, settings
from qwen_mfa.kernels import mlx
from qwen_mfa.native.buffers import working_stream
from qwen_mfa.transforms.autodiff import with_derivatives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem
    from qwen_mfa.tally import Tally
    from qwen_mfa.transforms.masks import Looks

# Below these, masks stay and nothing is measured: shortening (0.1 ms, and a copy of K and V when
# the visible keys are in two runs) costs more than it can save. With the portable engine, which
# skips hidden keys itself: even at 5e9 operations, ahead from there on, and from 2e8 with additive
# masks. Qwen-Image at 512 x 512 is 1.5e10. `qwen-mfa bench padding` shows it.
MIN_QUERIES = 64
MIN_FLOPS = 5_000_000_000
MAX_ELEMENTS = 1 << 18
# A key with this bias would have to score 60000 above the best visible one to matter; float16's
# own minimum is -65504.
MIN_HIDING = -60000.0
MAX_RUNS = 4


_kept: ContextVar[bool] = ContextVar("kept", default=False)


@contextmanager
def kept() -> Iterator[None]:
    """Keep every mask in this context, to compare with."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive rows of the batch that see the same keys.

    Attributes:
        rows: First and last-but-one row, as of a slice.
        runs: The visible keys, as slices in ascending order; never empty.

    """

    rows: tuple[int, int]
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """What of a mask decides what its removal costs and saves.

    Attributes:
        hidden: Hidden keys, of the rows that see most.
        runs: Consecutive runs of visible keys, of the rows that have most; each is a piece to copy.
        parts: Groups of rows that are computed one after the other.

    """

    hidden: int
    runs: int
    parts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoding:
    """How a dtype's bits, read as unsigned integers, say visible and hidden.

    Negative floating-point numbers of growing size have growing bit patterns, so that a range of
    integers is a range of numbers: here from `MIN_HIDING` to minus infinity.
    """

    code: Literal["B", "H", "I"]
    visible: tuple[int, ...]
    hidden: range


_ENCODINGS = {
    mx.bool_: _Encoding(code="B", visible=(1,), hidden=range(1)),
    mx.float32: _Encoding(
        code="I", visible=(0, 0x80000000), hidden=range(0xC76A6000, 0xFF800000 + 1)
    ),
    mx.bfloat16: _Encoding(code="H", visible=(0, 0x8000), hidden=range(0xC76B, 0xFF80 + 1)),
    mx.float16: _Encoding(code="H", visible=(0, 0x8000), hidden=range(0xFB53, 0xFC00 + 1)),
}


def may_apply(problem: Problem, *, min_flops: int | None = None) -> bool:
    """Whether a mask of ``problem`` is worth a look; ``min_flops`` is `MIN_FLOPS` if ``None``."""
    least = MIN_FLOPS if min_flops is None else min_flops
    return problem.flops >= least and _is_candidate(problem)


def are_kept() -> bool:
    """Whether all masks stay: in `kept`, or because ``QWEN_MFA_KEEP_PADDING`` says so."""
    return _kept.get() or settings.current().padding == settings.KEEP


def pattern_of(parts: tuple[Part, ...], keys: int) -> Pattern:
    """Return what costs and savings depend on, of a mask over ``keys`` keys."""
    visible = max(sum(stop - start for start, stop in part.runs) for part in parts)
    runs = max(len(part.runs) for part in parts)
    return Pattern(hidden=keys - visible, runs=runs, parts=len(parts))


def visible_parts(
    call: Call, *, min_flops: int | None = None, looks: Looks | None = None
) -> tuple[Part, ...] | None:
    """Return which keys each row of the batch sees, or ``None`` when the mask must stay.

    Args:
        call: The call, with a mask for ``[B, Hq, Sq, Skv]`` or none.
        min_flops: Leave smaller problems alone; `MIN_FLOPS` when ``None``.
        looks: Asked before the mask is read, and told when it stays; where reading may wait.

    """
    problem, mask = call.problem, call.mask
    if not isinstance(mask, mx.array) or not may_apply(problem, min_flops=min_flops):
        return None
    if mask.dtype not in _ENCODINGS or are_kept() or not (looks is None or looks.may_look(mask)):
        return None
    data = contents(mask)
    if data is None:
        return None
    parts = parts_in(data, call)
    if parts is None and looks is not None:
        looks.stays(mask)
    return parts


def parts_in(data: bytes, call: Call) -> tuple[Part, ...] | None:
    """Return which keys each row of the batch sees when the mask of ``call`` holds ``data``."""
    encoding = _ENCODINGS.get(cast("mx.array", call.mask).dtype)
    parts = None if encoding is None else _parse(data, encoding, call.problem.seq_kv)
    if parts is not None and len(parts) == 1:
        return (replace(parts[0], rows=(0, call.problem.batch)),)
    return parts


def attend(parts: tuple[Part, ...], call: Call, attention: Callable[[Call], mx.array]) -> mx.array:
    """Compute ``call`` without its mask, by ``attention`` over the visible keys of each part."""
    stream = call.stream or working_stream()
    with mx.stream(stream) if stream else nullcontext():
        results = [attention(_shortened(call, part)) for part in parts]
        return results[0] if len(results) == 1 else mx.concatenate(results, axis=0)


class Shortener:
    """Computes calls of one kind without their mask, once all about them is decided.

    That is: the mask hides these keys, leaving them out wins, and MLX computes what is left. The
    mask is read at every call still; what is spared is asking everything else again, 0.1 ms on the
    host of a GPU.
    """

    def __init__(
        self, call: Call, part: Part, hides: bytes, looks: Looks | None, counted: tuple[Tally, ...]
    ) -> None:
        """Compute calls like ``call``.

        Args:
            call: Evaluated, without sinks; v is as k.
            part: The keys that all its rows see.
            hides: What such masks hold, from which ``part`` was read.
            looks: As in `visible_parts`.
            counted: What counts such calls.

        """
        self._scale, self._looks, self._counted = call.scale, looks, counted
        self._hides = hides
        scale = call.scale  # the functions must not hold the call, and so its arrays

        def without(q: mx.array, k: mx.array, v: mx.array, *_: mx.array) -> mx.array:
            return mlx.attention(q, _visible(k, part), _visible(v, part), scale=scale)

        def masked(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
            return mlx.attention(q, k, v, scale=scale, mask=mask)

        # An additive mask may be a variable itself: its gradient needs the masked computation.
        is_bool = call.problem.mask == "bool"
        self._attend = without if is_bool else with_derivatives(without, masked)

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, mask: Any, scale: float
    ) -> mx.array | None:
        """Compute the call, v as k, or return ``None`` if it is not one of these after all."""
        if scale != self._scale or are_kept():
            return None
        if not (self._looks is None or self._looks.knows(mask)) or contents(mask) != self._hides:
            return None
        for tally in self._counted:
            tally.add()
        with exits.inside():
            return self._attend(q, k, v, mask)


def contents(mask: Any) -> bytes | None:
    """Return the bytes of ``mask``; ``None`` while MLX traces it, and of another thread's."""
    try:
        return bytes(memoryview(mask))
    except (RuntimeError, ValueError):
        return None


def _is_candidate(problem: Problem) -> bool:
    shape = (1, 1, 1, 1, *problem.mask_shape)[-4:]
    return (
        problem.mask in {"bool", "additive"}
        and problem.seq_q >= MIN_QUERIES
        and shape[1:] == (1, 1, problem.seq_kv)
        and shape[0] * shape[3] <= MAX_ELEMENTS
    )


@lru_cache(maxsize=16)
def _parse(data: bytes, encoding: _Encoding, keys: int) -> tuple[Part, ...] | None:
    values = memoryview(data).cast(encoding.code)
    seen: list[tuple[tuple[int, int], ...]] = []
    for start in range(0, len(values), keys):
        runs = _runs(values[start : start + keys], encoding)
        if runs is None:
            return None
        seen.append(runs)
    parts, first = [], 0
    for runs, group in itertools.groupby(seen):
        count = len(list(group))
        parts.append(Part(rows=(first, first + count), runs=runs))
        first += count
    return tuple(parts)


def _runs(row: memoryview[int], encoding: _Encoding) -> tuple[tuple[int, int], ...] | None:
    """Return the visible keys of one row; ``None`` for a bias, too many holes, or no key left."""
    runs: list[tuple[int, int]] = []
    position = 0
    for value, group in itertools.groupby(row):
        end = position + len(list(group))
        if value in encoding.visible:
            if runs and runs[-1][1] == position:  # 0.0 next to -0.0
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((position, end))
        elif value not in encoding.hidden:
            return None
        position = end
    return tuple(runs) if 0 < len(runs) <= MAX_RUNS else None


def _shortened(call: Call, part: Part) -> Call:
    first, last = part.rows
    whole = part.rows == (0, call.q.shape[0])
    q, k, v = (x if whole else x[first:last] for x in (call.q, call.k, call.v))
    return replace(call, q=q, k=_visible(k, part), v=_visible(v, part), mask=None)


def _visible(x: mx.array, part: Part) -> mx.array:
    if part.runs == ((0, x.shape[2]),):
        return x
    pieces = [x[:, :, start:stop] for start, stop in part.runs]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=2)
