"""Which problems the Metal library takes; all others are refused here, since it would not say so.

It returns no error for most of these: it computes something else, writes past a buffer or ends the
process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_mfa.problem import Problem

PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
MAX_BATCH = 1024  # this and the next two are what upstream's own client allows itself
MAX_HEADS = 1024
MAX_LENGTH = 65535
MAX_HEAD_DIM = 384  # where its tables of block sizes end
MAX_ELEMENTS = 2**32 - 1  # beyond, its 32-bit counts trap
MASK_BYTES = 1 << 30  # of the library's expanded mask, in memory that it never gives back


def refusal(problem: Problem, intermediate: str) -> str | None:
    """Return why the library cannot take ``problem``, or ``None``."""
    p = problem
    if p.is_empty or p.head_dim == 0:
        return "there is nothing to compute"  # sizes of 0 end the process
    if p.dtype not in PRECISIONS:
        return f"{p.dtype} is none of {', '.join(PRECISIONS)}"  # else taken for FP32: over-read
    if p.heads_q != p.heads_kv:
        return "grouped queries: its kernel needs as many key heads as query heads"
    if p.head_dim != p.value_dim:
        return f"head_dim {p.head_dim} and value_dim {p.value_dim} differ"
    if p.head_dim > MAX_HEAD_DIM:
        return f"head_dim {p.head_dim} is above {MAX_HEAD_DIM}"
    if p.sinks:
        return "its kernel has no attention sinks"
    return _size(p) or _mask(p) or _intermediate(p, intermediate)


def _size(p: Problem) -> str | None:
    length = max(p.seq_q, p.seq_kv)
    if length > MAX_LENGTH:
        return f"a length of {length} is above {MAX_LENGTH}"
    if p.batch > MAX_BATCH or p.heads_q > MAX_HEADS:
        return f"batch {p.batch} x heads {p.heads_q} is above {MAX_BATCH} x {MAX_HEADS}"
    if p.batch * p.heads_q * length * p.head_dim > MAX_ELEMENTS:
        return "a tensor of 2^32 elements or more"
    return None


def _mask(p: Problem) -> str | None:
    if p.mask == "causal":
        # Aligned at the top left there, at the bottom right in MLX.
        return None if p.seq_q == p.seq_kv else "causal with Sq and Skv that differ"
    if p.mask == "none":
        return None
    size = 4 * p.batch * p.heads_q * p.seq_q * p.seq_kv
    if size > MASK_BYTES:
        return (
            f"its copy of the mask would take {size / 2**30:.1f} GiB, and "
            f"{MASK_BYTES / 2**30:.0f} GiB is allowed"
        )
    return None


def _intermediate(p: Problem, intermediate: str) -> str | None:
    if intermediate != "fp32" and p.dtype != "bfloat16":
        # With FP16 inputs the scores would be FP16, and overflow; FP32 inputs ask for accuracy.
        return f"low intermediate precision is for bfloat16 inputs, not {p.dtype}"
    return None
