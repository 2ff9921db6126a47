"""Measures whether attention is faster without its padded keys than with the mask that hides them.

As kernels are (`qwen_mfa.tuning.measure`), at the smallest and the largest problem of a class of
masks. Looking at the mask counts, and so do the copies of K and V.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from qwen_mfa.kernels import mlx
from qwen_mfa.problem import MLX_DTYPES
from qwen_mfa.transforms import autodiff, padding
from qwen_mfa.tuning import measure
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.variants import class_of, half_octave

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call, Kernel
    from qwen_mfa.problem import Problem
    from qwen_mfa.transforms.padding import Pattern
    from qwen_mfa.tuning.measure import Sample

_HIDES = -math.inf


def class_key(problem: Problem, pattern: Pattern) -> str:
    """Return the key of the class of masks of ``pattern`` over the class of ``problem``.

    Hidden keys count in half octaves, as lengths do.
    """
    low, high = _hidden(pattern)
    return f"{class_of(problem)[0]} hidden {low}-{high} runs {pattern.runs} parts {pattern.parts}"


def measure_removal(
    problem: Problem, pattern: Pattern, *, without: Kernel, masked: Kernel
) -> list[Sample]:
    """Compare both ways at both ends of the class; its masks that hide least are the standard.

    Args:
        problem: With its mask.
        pattern: Of the mask.
        without: The kernel that computes what is left.
        masked: The kernel that computes it with the mask.

    Raises:
        QwenMfaError: A kernel failed.

    """
    _, *ends = class_of(problem)
    share = _hidden(pattern)[0] / ends[0].seq_kv

    def ways(end: Problem) -> tuple[measure.Work, measure.Work]:
        # A problem that was made smaller has its share of them.
        hidden = min(_hidden(pattern)[0], int(share * end.seq_kv), end.seq_kv - 1)
        call = _draw(end, replace(pattern, hidden=hidden))
        parts = padding.visible_parts(call, min_flops=0)

        def ours() -> mx.array:
            # Read again, as every call does.
            found = padding.visible_parts(call, min_flops=0)
            return padding.attend(found or (), call, _attention(without))

        if parts is None:  # too short for it, by `padding.MIN_QUERIES`
            return lambda: mlx.run(call), lambda: mlx.run(call)
        # A mask of its own: on NVIDIA GPUs, memory that host and device read in turn travels.
        other = replace(call, mask=mx.array(cast("mx.array", call.mask)))
        mx.eval(other.mask)
        return ours, lambda: _attention(masked)(other)

    return measure.compare(ways, (ends[0], ends[1]))


def mask_of(problem: Problem, pattern: Pattern) -> mx.array:
    """Return a mask of ``pattern`` for ``problem``, of its kind, shape and dtype."""
    rows = problem.mask_shape[0] if len(problem.mask_shape) == 4 else 1
    keys = problem.seq_kv
    lines = []
    for row in range(rows):
        # Parts differ by one hidden key each, the first hides what the pattern says.
        more = row * pattern.parts // rows
        lines += _line(keys, min(pattern.hidden + more, keys - 1), pattern.runs)
    visible = mx.array(lines).reshape(problem.mask_shape)
    if problem.mask == "bool":
        return visible
    return mx.where(visible, 0.0, _HIDES).astype(MLX_DTYPES[problem.dtype])


def _line(keys: int, hidden: int, runs: int) -> list[bool]:
    """Return which keys are seen: up to ``runs`` pieces, all of about one length, as the gaps."""
    pieces = min(runs, keys - hidden, hidden + 1)
    seen = _shares(keys - hidden, pieces)
    gaps = _shares(hidden, pieces - 1) if pieces > 1 else [hidden]
    line: list[bool] = []
    for piece, gap in itertools.zip_longest(seen, gaps, fillvalue=0):
        line += [True] * piece + [False] * gap
    return line


def _shares(total: int, number: int) -> list[int]:
    return [total * (i + 1) // number - total * i // number for i in range(number)]


def _hidden(pattern: Pattern) -> tuple[int, int]:
    return half_octave(pattern.hidden) if pattern.hidden else (0, 0)


def _draw(problem: Problem, pattern: Pattern) -> Call:
    plain = replace(problem, mask="none", mask_shape=())
    call = replace(draw(plain).call, mask=mask_of(problem, pattern))
    mx.eval(call.arrays())
    return call


def _attention(kernel: Kernel) -> Callable[[Call], mx.array]:
    if kernel is mlx:
        return mlx.run

    def attend(call: Call) -> mx.array:
        autodiff.evaluate(call)
        return autodiff.differentiable(call, kernel.run)

    return attend
