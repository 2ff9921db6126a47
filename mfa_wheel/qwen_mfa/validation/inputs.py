"""Draws inputs for validation and tuning: random, of every memory layout that callers have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mlx.core as mx

from qwen_mfa.kernels.base import Call
from qwen_mfa.problem import MLX_DTYPES

if TYPE_CHECKING:
    from qwen_mfa.problem import Problem

Layout = Literal["dense", "interleaved", "sliced", "odd starts", "odd rows"]

# Additive biases that matter (scores are of size 1), and how many keys they remove altogether.
BIAS = 2.0
REMOVED = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A call, and the arrays that own its memory: more than the call's views reach."""

    call: Call
    owners: list[mx.array]

    def digest(self) -> bytes:
        """Return a hash of all memory that the call's arrays lie in."""
        found = hashlib.blake2b(digest_size=16)
        for owner in self.owners:
            found.update(memoryview(owner).tobytes())  # type: ignore[arg-type]
        return found.digest()


def draw(
    problem: Problem,
    *,
    layout: Layout = "interleaved",
    seed: int = 0,
    magnitude: float = 1.0,
    scale: float | None = None,
    mask_dtype: mx.Dtype | None = None,
) -> Drawn:
    """Draw a call for ``problem``, evaluated.

    Args:
        problem: Sizes and kinds.
        layout: ``"dense"`` BHSD; ``"interleaved"``: BSHD memory seen as BHSD, as hosts have it;
            ``"sliced"``: part of larger arrays, with gaps between rows, heads and entries;
            ``"odd starts"``: the first element at an odd place, and an odd number of elements from
            head to head and from entry to entry; ``"odd rows"``: sliced, with an odd number from
            row to row, and from head to head.
        seed: Of the random numbers.
        magnitude: Factor on q; scores grow with it.
        scale: Softmax scale, ``D ** -0.5`` by default.
        mask_dtype: Of an additive mask; the problem's by default.

    """
    dtype = MLX_DTYPES[problem.dtype]
    keys = mx.random.split(mx.random.key(seed), 5)
    sizes = (
        (problem.heads_q, problem.seq_q, problem.head_dim, magnitude),
        (problem.heads_kv, problem.seq_kv, problem.head_dim, 1.0),
        (problem.heads_kv, problem.seq_kv, problem.value_dim, 1.0),
    )
    owners, views = [], []
    for (heads, rows, dim, factor), key in zip(sizes, keys, strict=False):
        owner, view = _operand((problem.batch, heads, rows, dim), factor, dtype, layout, key)
        owners.append(owner)
        views.append(view)
    mask: mx.array | str | None = "causal" if problem.mask == "causal" else None
    if problem.mask_shape or problem.mask in {"bool", "additive"}:
        owner, mask = _mask(problem, mask_dtype or dtype, layout, keys[3])
        owners.append(owner)
    sinks = None
    if problem.sinks:
        sinks = mx.random.normal((problem.heads_q,), key=keys[4]).astype(dtype)
        owners.append(sinks)
    q, k, v = views
    factor = problem.head_dim**-0.5 if scale is None else scale
    call = Call(q=q, k=k, v=v, scale=factor, mask=mask, sinks=sinks)
    mx.eval(owners, call.arrays())
    return Drawn(call=call, owners=owners)


def _operand(
    shape: tuple[int, int, int, int],
    factor: float,
    dtype: mx.Dtype,
    layout: Layout,
    key: mx.array,
) -> tuple[mx.array, mx.array]:
    batch, heads, rows, dim = shape
    if layout == "interleaved":
        owner = (mx.random.normal((batch, rows, heads, dim), key=key) * factor).astype(dtype)
        return owner, owner.transpose(0, 2, 1, 3)
    if layout == "dense":
        owner = (mx.random.normal(shape, key=key) * factor).astype(dtype)
        return owner, owner
    if layout == "odd starts":
        head = _odd(rows * dim)
        entry = _odd(heads * head)
        owner = (mx.random.normal((1 + batch * entry,), key=key) * factor).astype(dtype)
        return owner, mx.as_strided(owner, shape, (entry, head, dim, 1), 1)
    wide = (batch, heads + 1, rows + 3, dim + 8)
    if layout == "odd rows":
        wide = (batch, heads + 1, _odd(rows + 2), _odd(dim + 8))
    owner = (mx.random.normal(wide, key=key) * factor).astype(dtype)
    return owner, owner[:, 1:, 2 : 2 + rows, :dim]


def _odd(least: int) -> int:
    return least | 1


def _mask(
    problem: Problem, dtype: mx.Dtype, layout: Layout, key: mx.array
) -> tuple[mx.array, mx.array]:
    shape = problem.mask_shape
    wide = (*shape[:-1], shape[-1] + 5) if layout == "sliced" else shape
    chance, size = mx.random.split(key)
    # The first key stays: a row without keys is a question of convention, not of arithmetic.
    keep = (mx.random.uniform(shape=wide, key=chance) > REMOVED) | (mx.arange(wide[-1]) == 0)
    if problem.mask == "bool":
        owner = keep
    else:
        biases = mx.random.normal(wide, key=size) * BIAS
        owner = mx.where(keep, biases, -mx.inf).astype(dtype)
    return owner, owner[..., : shape[-1]]
