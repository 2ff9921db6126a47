"""A frozen description of one attention problem: what a kernel accepts or refuses, and a cache key.

Whatever MLX would raise on is not described at all (`describe` returns ``None``): the call then
goes to MLX, which raises its own error. So errors are MLX's, by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

DTYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
MLX_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
# Precision codes of the C interface, see mfa_ffi.h.
PRECISIONS = {"float16": 0, "bfloat16": 1, "float32": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One attention problem.

    Attributes:
        batch: B.
        heads_q: Query heads.
        heads_kv: Key and value heads; divides ``heads_q``.
        seq_q: Query rows.
        seq_kv: Key and value rows.
        head_dim: Last dimension of q and k.
        value_dim: Last dimension of v and of the result.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, or another floating type's name: that
            of the result, to which all inputs are promoted.
        mask: ``"none"``, ``"causal"`` (bottom-right aligned), ``"bool"`` or ``"additive"``.
        mask_shape: Shape of an array mask, right-aligned to (B, H, Sq, Skv); else ``()``.
        sinks: Whether attention sinks are given.

    """

    batch: int
    heads_q: int
    heads_kv: int
    seq_q: int
    seq_kv: int
    head_dim: int
    value_dim: int
    dtype: str
    mask: str = "none"
    mask_shape: tuple[int, ...] = ()
    sinks: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute, or nothing to attend to."""
        return 0 in (self.batch, self.heads_q, self.seq_q, self.seq_kv, self.value_dim)

    @property
    def flops(self) -> int:
        """Floating-point operations of the two matrix products (multiply and add counted)."""
        pairs = self.batch * self.heads_q * self.seq_q * self.seq_kv
        return 2 * pairs * (self.head_dim + self.value_dim)

    def __str__(self) -> str:
        heads = (
            f"H {self.heads_q}"
            if self.heads_q == self.heads_kv
            else f"H {self.heads_q}/{self.heads_kv}"
        )
        dims = (
            f"D {self.head_dim}"
            if self.head_dim == self.value_dim
            else f"D {self.head_dim}/{self.value_dim}"
        )
        mask = self.mask if not self.mask_shape else f"{self.mask} {list(self.mask_shape)}"
        sinks = ", sinks" if self.sinks else ""
        return (
            f"B {self.batch} {heads} Sq {self.seq_q} Skv {self.seq_kv} {dims} {self.dtype}, "
            f"mask {mask}{sinks}"
        )


def describe(
    q: object, k: object, v: object, mask: object = None, sinks: object = None
) -> Problem | None:
    """Describe a call, or return ``None`` when MLX must judge it (and most likely raise).

    Args:
        q: Queries ``[B, Hq, Sq, D]``.
        k: Keys ``[B, Hkv, Skv, D]``.
        v: Values ``[B, Hkv, Skv, Dv]``.
        mask: ``None``, ``"causal"``, or an array that broadcasts to ``[B, Hq, Sq, Skv]``.
        sinks: ``None`` or an array ``[Hq]``.

    """
    if not (isinstance(q, mx.array) and isinstance(k, mx.array) and isinstance(v, mx.array)):
        return None
    qs, ks, vs = q.shape, k.shape, v.shape
    if not (len(qs) == len(ks) == len(vs) == 4):
        return None
    batch, heads_q, seq_q, head_dim = qs
    _, heads_kv, seq_kv, _ = ks
    fits = (
        ks[0] == vs[0] == batch
        and ks[3] == head_dim
        and vs[1] == heads_kv
        and vs[2] == seq_kv
        and heads_kv > 0
        and heads_q % heads_kv == 0
    )
    if not fits:
        return None
    dtype = q.dtype if q.dtype == k.dtype == v.dtype else mx.result_type(q, k, v)
    name = DTYPES.get(dtype)
    if name is None:
        return None
    kind: str = "none"
    shape: tuple[int, ...] = ()
    if mask is not None:
        found = _mask(mask, (batch, heads_q, seq_q, seq_kv), dtype)
        if found is None:
            return None
        kind, shape = found
    if sinks is not None and not (
        isinstance(sinks, mx.array) and sinks.shape == (heads_q,) and _promotes(sinks.dtype, dtype)
    ):
        return None
    return Problem(
        batch=batch,
        heads_q=heads_q,
        heads_kv=heads_kv,
        seq_q=seq_q,
        seq_kv=seq_kv,
        head_dim=head_dim,
        value_dim=vs[3],
        dtype=name,
        mask=kind,
        mask_shape=shape,
        sinks=sinks is not None,
    )


def _mask(
    mask: object, full: tuple[int, int, int, int], dtype: mx.Dtype
) -> tuple[str, tuple[int, ...]] | None:
    if isinstance(mask, str):
        return ("causal", ()) if mask == "causal" else None
    if not isinstance(mask, mx.array):
        return None
    shape = mask.shape
    aligned = full[4 - len(shape) :] if len(shape) <= 4 else ()
    if len(shape) > 4 or any(m not in (1, n) for m, n in zip(shape, aligned, strict=True)):
        return None
    if mask.dtype == mx.bool_:
        return "bool", shape
    return ("additive", shape) if _promotes(mask.dtype, dtype) else None


def _promotes(source: mx.Dtype, target: mx.Dtype) -> bool:
    return source == target or mx.result_type(source, target) == target
