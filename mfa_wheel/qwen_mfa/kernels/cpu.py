"""The portable engine, over MLX's memory: no copies of q, k, v, and no extra pass on the output."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks
from qwen_mfa.errors import LibraryError, NativeError, RefusedError
from qwen_mfa.native import library
from qwen_mfa.native.buffers import Borrowed, borrow, can_begin_as_copy, fresh, is_head_interleaved
from qwen_mfa.native.ffi import ffi
from qwen_mfa.problem import MLX_DTYPES, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem

name = "cpu"
roundoff = 2**-24
needs_child_validation = True

MAX_HEAD_DIM = 1024
_INVALID_ARGUMENTS = 1
# mfa_mask_type_t and mfa_mask_scalar_t.
_MASK_BOOL, _MASK_ADDITIVE = 1, 2
_SCALARS = {mx.bool_: 0, mx.float16: 1, mx.bfloat16: 2, mx.float32: 3}
_CAUSAL_BOTTOM_RIGHT = 2
_EMPTY_ROW_ZERO, _EMPTY_ROW_MEAN = 0, 1


def refuses(problem: Problem) -> str | None:
    """Return why the portable engine cannot take ``problem``, or ``None``."""
    try:
        engine = library.load()
        if not engine.is_portable:
            return "the embedded library is not the portable engine"
    except LibraryError as error:
        return str(error)
    if "error" in engine.facts:  # of the environment, not of the kernel
        return engine.facts["error"]
    if mx.default_device().type != mx.DeviceType.cpu:
        return "MLX's default device is not the CPU"
    if problem.is_empty:
        return "there is nothing to compute"
    if max(problem.head_dim, problem.value_dim) > MAX_HEAD_DIM or problem.head_dim == 0:
        return f"head_dim {problem.head_dim}/{problem.value_dim} is outside 1 to {MAX_HEAD_DIM}"
    return None


def instructions(dtype: str) -> str:
    """Return the instruction set by which this process computes ``dtype``."""
    facts = library.load().facts
    return facts.get("bf16" if dtype == "bfloat16" else "isa", "")


def run(call: Call) -> mx.array:
    """Compute on the CPU and return a fresh array ``[B, Hq, Sq, Dv]`` of the problem's dtype."""
    args, out, kept = _arguments(call)
    context = _context()
    lib = library.load()
    code = lib.lib.mfa_portable_attention(context.handle, args)
    try:
        lib.check("mfa_portable_attention", code)
    except NativeError as error:
        if error.code == _INVALID_ARGUMENTS:
            raise RefusedError(str(error)) from error
        raise
    del kept  # what the engine read stays alive until here
    return out


class Repeated:
    """Calls that differ in what their arrays hold alone: what else the engine is told is kept.

    For calls without sinks, whose mask is no array. Filling it in anew takes longer than 16 tokens.
    """

    def __init__(self, call: Call, args: Any, out: mx.array) -> None:
        """Prepare for calls like ``call``: see `repeated`."""
        self._args = args
        self.layouts = [_layout(x) for x in (call.q, call.k, call.v)]
        self._out_layout = _layout(out)
        dtype, interleaved = out.dtype, is_head_interleaved(call.q)
        if can_begin_as_copy(out.shape, dtype, borrow(call.q), interleaved=interleaved):
            self._fresh: Callable[[mx.array], mx.array] = partial(mx.from_dlpack, copy=True)
        else:
            shape = _shape(call.problem)
            self._fresh = lambda _: fresh(shape, dtype, interleaved=interleaved)
        self._context = _context()
        self._attention = library.load().lib.mfa_portable_attention

    def run(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array | None:
        """Compute as `run`; ``None`` if the layout is another one, or anything is amiss."""
        if [_layout(x) for x in (q, k, v)] != self.layouts:
            return None
        out: mx.array = self._fresh(q)
        if _layout(out) != self._out_layout:
            return None
        c = ffi()
        args = c.new("mfa_portable_args_t *", self._args[0])
        args.q, args.k, args.v, args.out = kept = [
            c.from_buffer("void *", x) for x in (q, k, v, out)
        ]
        failed = self._attention(self._context.handle, args)
        del kept
        return None if failed else out


def repeated(call: Call) -> Repeated | None:
    """Return what computes calls like ``call``, which are evaluated and of one dtype.

    ``None`` where the engine cannot take the arrays as they lie.
    """
    before = [_layout(x) for x in (call.q, call.k, call.v)]
    args, out, (q, k, v, *_) = _arguments(call)
    if any(x.array is not y for x, y in ((q, call.q), (k, call.k), (v, call.v))):
        return None
    made = Repeated(call, args, out)
    # Another thread may have put other contents behind an array meanwhile.
    return made if made.layouts == before else None


def _layout(array: mx.array) -> tuple[int, ...] | None:
    return memoryview(array).strides  # type: ignore[arg-type]


def _shape(problem: Problem) -> tuple[int, int, int, int]:
    return problem.batch, problem.heads_q, problem.seq_q, problem.value_dim


def _arguments(call: Call) -> tuple[Any, mx.array, list[Any]]:
    """Return what the engine is told, a fresh output, and what has to stay alive meanwhile."""
    problem = call.problem
    dtype = MLX_DTYPES[problem.dtype]
    q, k, v = (borrow(_as(x, dtype)) for x in (call.q, call.k, call.v))
    out_array = fresh(_shape(problem), dtype, interleaved=is_head_interleaved(q.array), like=q)
    out = borrow(out_array)
    args = ffi().new("mfa_portable_args_t *")
    args.struct_bytes = ffi().sizeof("mfa_portable_args_t")
    args.batch, args.heads_q, args.heads_kv = problem.batch, problem.heads_q, problem.heads_kv
    args.seq_q, args.seq_kv = problem.seq_q, problem.seq_kv
    args.head_dim, args.value_dim = problem.head_dim, problem.value_dim
    for field, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        setattr(args, field, ffi().cast("void *", x.pointer))
        setattr(args, f"{field}_bytes", x.span)
        setattr(args, f"{field}_strides", x.strides[:3])
    args.input_precision = args.output_precision = PRECISIONS[problem.dtype]
    args.scale = call.scale
    kept = [q, k, v, out, _set_mask(args, call, dtype), _set_sinks(args, call)]
    return args, out_array, kept


def _set_mask(args: Any, call: Call, dtype: mx.Dtype) -> Borrowed | None:
    problem = call.problem
    if problem.mask == "causal":
        args.causal = _CAUSAL_BOTTOM_RIGHT
    # With finite scores MLX spreads a row that has no key left evenly over all keys; with sinks,
    # all the weight goes to the sink.
    args.empty_rows = _EMPTY_ROW_ZERO if problem.sinks else _EMPTY_ROW_MEAN
    mask = call.mask
    if not isinstance(mask, mx.array):
        return None
    if mask.dtype not in _SCALARS:
        mask = _as(mask, dtype)
    borrowed = borrow(mask, rows=False)
    args.mask = ffi().cast("void *", borrowed.pointer)
    args.mask_bytes = borrowed.span
    args.mask_strides = [0] * (4 - len(borrowed.strides)) + list(borrowed.strides)
    args.mask_type = _MASK_BOOL if problem.mask == "bool" else _MASK_ADDITIVE
    args.mask_scalar_type = _SCALARS[mask.dtype]
    return borrowed


def _set_sinks(args: Any, call: Call) -> Borrowed | None:
    if call.sinks is None:
        return None
    borrowed = borrow(_as(call.sinks, mx.float32))
    args.sinks = ffi().cast("float *", ffi().cast("void *", borrowed.pointer))
    return borrowed


def _as(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array if array.dtype == dtype else _evaluated(array.astype(dtype))


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array


_lock = forks.lock()
_contexts: dict[str, library.Context] = {}


def _context() -> library.Context:
    """Return the process's one context; the engine allows calls from many threads on it."""
    lib = library.load()
    key = str(lib.path)
    context = _contexts.get(key)
    if context is None:
        with _lock:
            context = _contexts.get(key)
            if context is None:
                context = _contexts[key] = lib.new_context()
    return context
