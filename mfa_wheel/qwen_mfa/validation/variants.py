"""What validation and tuning treat alike: variants of a problem, and classes of its sizes.

A *variant* is what may need code of its own in a kernel: it is validated once. A *class* is a
variant together with ranges of its sizes: it is measured once. Lengths fall into half octaves
(…, 725 to 1024, 1025 to 1448, …), so that a new prompt seldom leaves the class of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_mfa.problem import Problem

# Beyond this length, kernels have no further cases: longer problems share a validation.
LONGEST_PROOF_CLASS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What one validation covers. Memory layouts are not told apart: each goes through several.

    Attributes:
        dtype: As in `Problem`.
        mask: As in `Problem`.
        mask_axes: Which of (B, H, Sq, Skv) an array mask has, as letters; the others broadcast.
        relation: ``"="``, ``"<"`` or ``">"``: how Sq compares with Skv.
        group: Query heads per key head.
        head_dim: D.
        value_dim: Dv.
        sinks: Whether there are attention sinks.
        length: Power of two that Sq and Skv do not exceed, or `LONGEST_PROOF_CLASS` times two.

    """

    dtype: str
    mask: str
    mask_axes: str
    relation: str
    group: int
    head_dim: int
    value_dim: int
    sinks: bool
    length: int

    @property
    def key(self) -> str:
        """Return a text that identifies the variant."""
        mask = self.mask + (f"[{self.mask_axes}]" if self.mask_axes else "")
        dims = f"D{self.head_dim}" + (
            f"/{self.value_dim}" if self.value_dim != self.head_dim else ""
        )
        sinks = " sinks" if self.sinks else ""
        limit = (
            f"S<={self.length}"
            if self.length <= LONGEST_PROOF_CLASS
            else f"S>{LONGEST_PROOF_CLASS}"
        )
        return f"{self.dtype} {dims} G{self.group} {mask}{sinks} Sq{self.relation}Skv {limit}"


def variant_of(problem: Problem) -> Variant:
    """Return the variant that ``problem`` belongs to."""
    q, kv = problem.seq_q, problem.seq_kv
    length = 16
    while length < max(q, kv) and length <= LONGEST_PROOF_CLASS:
        length *= 2
    shape = (1, 1, 1, 1, *problem.mask_shape)[-4:]
    return Variant(
        dtype=problem.dtype,
        mask=problem.mask,
        mask_axes="".join(letter for letter, size in zip("BHQK", shape, strict=True) if size != 1),
        relation="=" if q == kv else "<" if q < kv else ">",
        group=problem.heads_q // problem.heads_kv,
        head_dim=problem.head_dim,
        value_dim=problem.value_dim,
        sinks=problem.sinks,
        length=length,
    )


def class_of(problem: Problem) -> tuple[str, Problem, Problem]:
    """Return the key of the class of ``problem``, and its smallest and largest member.

    Batch and query heads count as one size (their product), in octaves: that is how much
    independent work there is. The members keep the batch and heads of ``problem``.
    """
    q, kv = half_octave(problem.seq_q), half_octave(problem.seq_kv)
    units = problem.batch * problem.heads_q
    octave = (units - 1).bit_length()
    key = (
        f"{variant_of(problem).key} Sq {q[0]}-{q[1]} Skv {kv[0]}-{kv[1]} "
        f"BH {(1 << octave) // 2 + 1 if octave else 1}-{1 << octave}"
    )
    same = problem.seq_q == problem.seq_kv
    less = problem.seq_q < problem.seq_kv
    ends = []
    for end in (0, 1):
        sq, skv = q[end], kv[end]
        if not same and q == kv and q[0] < q[1]:  # keep the relation at both ends of a range
            if less:
                sq, skv = (sq, skv + 1) if end == 0 else (sq - 1, skv)
            else:
                sq, skv = (sq + 1, skv) if end == 0 else (sq, skv - 1)
        ends.append(resized(problem, seq_q=sq, seq_kv=skv))
    return key, ends[0], ends[1]


def half_octave(length: int) -> tuple[int, int]:
    """Return the range, both ends included, of the half octave that ``length`` lies in."""
    high = 1
    while high < length:
        high *= 2
    middle = floor(high / sqrt(2))
    low = high // 2
    if length > middle:
        return middle + 1, high
    return low + 1, middle


def resized(problem: Problem, **sizes: int) -> Problem:
    """Return ``problem`` with other sizes, its mask following."""
    changed = replace(problem, **sizes)  # type: ignore[arg-type]  # sizes are all integers
    if not problem.mask_shape:
        return changed
    full = (changed.batch, changed.heads_q, changed.seq_q, changed.seq_kv)
    rank = len(problem.mask_shape)
    shape = tuple(
        1 if old == 1 else new
        for old, new in zip(problem.mask_shape, full[4 - rank :], strict=True)
    )
    return replace(changed, mask_shape=shape)
