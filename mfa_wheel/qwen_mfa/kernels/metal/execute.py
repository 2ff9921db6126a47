"""One attention call on the GPU: encode into a command buffer of our own, commit, wait, check.

Buffers are MLX's own. MLX's command buffers are never touched: they do not retain what is encoded
into them, and MLX ends them when it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks
from qwen_mfa.errors import MetalError, NativeError
from qwen_mfa.kernels import mlx
from qwen_mfa.kernels.metal import device, dlpack, masks, shaders
from qwen_mfa.kernels.metal.limits import PRECISIONS
from qwen_mfa.native import library
from qwen_mfa.native.buffers import fresh
from qwen_mfa.native.ffi import ffi
from qwen_mfa.once import Once

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call
    from qwen_mfa.problem import Problem

# The softmax scale is part of the generated source: each new one costs a compilation for ever.
MAX_SCALES = 64
_MASK_NONE, _MASK_ADDITIVE, _SCALAR_FP32 = 0, 2, 3  # mfa_mask_type_t, mfa_mask_scalar_t
_GPU = "the GPU"
_COMPLETED = 4  # MTLCommandBufferStatusCompleted
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# The library locks neither its pipelines nor its scratch memory for masks, has one context for the
# whole process, and cffi releases the GIL: one call at a time, from encoding to completion.
_lock = forks.lock()


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What lives as long as the process.

    Attributes:
        lib: The opened library.
        context: Its one context.
        queue: Our own ``MTLCommandQueue``.
        warm: Pipelines that had their throw-away run.
        scales: Softmax scales met so far.

    """

    lib: library.Library
    context: library.Context
    queue: Any = field(repr=False)
    warm: set[tuple[object, ...]] = field(default_factory=set, repr=False)
    scales: set[float] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One call, with everything that must stay alive until the GPU is done."""

    problem: Problem
    scale: float
    intermediate: str
    q: dlpack.Exported
    k: dlpack.Exported
    v: dlpack.Exported
    out: dlpack.Exported
    mask: dlpack.Exported | None


def attention(call: Call, intermediate: str) -> mx.array:
    """Compute ``call``; see `qwen_mfa.kernels.metal.MetalKernel.run`.

    Calls with a scale that is not positive and finite are answered by MLX: the scale is not part
    of a `Problem`, so it could not be refused before.
    """
    if not (isfinite(call.scale) and call.scale > 0):
        # Biases are divided by it; and its running maximum is one of unscaled scores.
        return mlx.run(call)
    problem = call.problem
    prepared = masks.prepare(call)
    arrays = [_operand(x, _DTYPES[problem.dtype]) for x in (call.q, call.k, call.v)]
    shape = (problem.batch, problem.heads_q, problem.seq_q, problem.value_dim)
    # Always FP32 and dense BHSD, whatever is asked of the library; and a new array each time, so
    # that nothing lazy that still reads an earlier result can see this one.
    out = fresh(shape, mx.float32, interleaved=False)
    # eval has waited for all of these; this waits for anything else of MLX's that is under way.
    mx.synchronize()
    with _lock:
        engine = the_engine()
        if call.scale not in engine.scales and len(engine.scales) >= MAX_SCALES:
            msg = f"more than {MAX_SCALES} softmax scales, each of which needs shaders of its own"
            raise MetalError(msg)
        engine.scales.add(call.scale)
        q, k, v = (dlpack.export(x) for x in arrays)
        work = _Work(
            problem=problem,
            scale=call.scale,
            intermediate=intermediate,
            q=q,
            k=k,
            v=v,
            out=dlpack.export(out),
            mask=None if prepared is None else dlpack.export(prepared.bias),
        )
        key = _pipeline(work)
        if key not in engine.warm:
            # Upstream notes that the first call of a shape may be slightly wrong. Nobody has seen
            # the output yet, so the real run may overwrite it.
            _perform(engine, work)
            engine.warm.add(key)
        _perform(engine, work)
    if prepared is not None:
        out = prepared.finish(out, call.v)
    # FP32 to the caller's dtype by MLX, lazily.
    return out if problem.dtype == "float32" else out.astype(_DTYPES[problem.dtype])


def _start() -> _Engine:
    metal, objc = device.modules()
    with objc.autorelease_pool():
        queue = metal.MTLCreateSystemDefaultDevice().newCommandQueue()
        lib = library.load()
        return _Engine(lib=lib, context=lib.new_context(), queue=queue)


# One for the process.
the_engine = Once(_start)


def _pipeline(work: _Work) -> tuple[object, ...]:
    """What the library caches pipelines by, and a little more."""
    p = work.problem
    masked = work.mask is not None
    return (p.seq_q, p.seq_kv, p.head_dim, p.dtype, p.mask == "causal", masked, work.scale,
            work.intermediate)  # fmt: skip


def _operand(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return ``array`` with strides that the library reads right, copied only if it must be."""
    array = array if array.dtype == dtype else array.astype(dtype)
    mx.eval(array)
    found = dlpack.export(array)
    strides = _strides(found)
    if strides is None or _splits_pairs(found, strides, array.itemsize):
        # `contiguous` leaves alone what is dense from an odd start; a product is new memory.
        array = mx.contiguous(array) * 1
        mx.eval(array)
    return array


def _strides(found: dlpack.Exported) -> tuple[int, ...] | None:
    """Return element strides in BHSD order, all positive and the last 1; ``None`` if they are not.

    A dimension of size 1 is never stepped over, so its stride may say anything; it gets that of a
    dense array.
    """
    usual = dlpack.dense(found.shape)
    strides = tuple(
        plain if size == 1 else step
        for size, step, plain in zip(found.shape, found.strides, usual, strict=True)
    )
    return strides if min(strides) > 0 and strides[-1] == 1 else None


def _splits_pairs(found: dlpack.Exported, strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether rows begin between the two elements of a pair where kernels load pairs.

    They do where the step from row to row is even. What a GPU makes of a pair at an odd element is
    not defined.
    """
    starts = [found.offset // itemsize]
    starts += [step for size, step in zip(found.shape[:2], strides[:2], strict=True) if size > 1]
    return strides[2] % 2 == 0 and any(start % 2 for start in starts)


def _perform(engine: _Engine, work: _Work) -> None:
    """Encode, commit, wait and check.

    Raises:
        NativeError: The library returned an error code, or the GPU reported one.
        MetalError: A buffer is smaller than what would be read or written.

    """
    _, objc = device.modules()
    # Neither the library nor a Python thread has a pool of its own: without one, every call leaks.
    with objc.autorelease_pool():
        _check_sizes(objc, work)
        commands = engine.queue.commandBuffer()
        if commands is None:
            msg = "the Metal queue gave no command buffer (too many under way?)"
            raise MetalError(msg)
        # After an error code the command buffer may hold half of the work: it is dropped.
        _check(engine, _encode(engine, objc, commands, work))
        commands.commit()
        commands.waitUntilCompleted()
        status, error = commands.status(), commands.error()
        if status != _COMPLETED or error is not None:
            text = "no text" if error is None else str(error.localizedDescription())
            raise NativeError(_GPU, int(status), text)


def _check(engine: _Engine, code: int) -> None:
    """Raise for an error code, saying what to do where shaders are the cause."""
    try:
        engine.lib.check("mfa_attention_encode_mtl", code)
    except NativeError as error:
        advice = shaders.advice(shaders.origins())
        if advice is None:
            raise
        raise NativeError(error.function, error.code, f"{error.text}. {advice}") from error


def _check_sizes(objc: Any, work: _Work) -> None:
    """Hold every buffer against what the problem says is read and written: the library does not."""
    p = work.problem
    rows_q: tuple[int, ...] = (p.batch, p.heads_q, p.seq_q, p.head_dim)
    rows_kv: tuple[int, ...] = (p.batch, p.heads_kv, p.seq_kv, p.head_dim)
    item = {"float32": 4}.get(p.dtype, 2)
    uses = [(work.q, rows_q, item), (work.k, rows_kv, item), (work.v, rows_kv, item)]
    uses.append((work.out, rows_q, 4))
    if work.mask is not None:
        uses.append((work.mask, work.mask.shape, 4))
    for found, shape, size in uses:
        length = objc.objc_object(c_void_p=found.buffer).length()
        needed = found.offset + size * dlpack.span(shape, found.strides)
        if found.shape != shape or length < needed:
            msg = (
                f"a Metal buffer holds {found.shape} in {length} bytes where {shape}, ending at "
                f"byte {needed}, is needed"
            )
            raise MetalError(msg)
    if work.out.strides != dlpack.dense(work.out.shape):
        msg = "the output is not dense"
        raise MetalError(msg)


def _encode(engine: _Engine, objc: Any, commands: Any, work: _Work) -> int:
    """Call ``mfa_attention_encode_mtl`` and return its code.

    This one and never ``mfa_attention_forward``: that computes one head, from wrong slots, below
    GPU family Apple9, and compiles its pipelines anew on each call. Strides are always given: with
    null, K's and V's heads are found with Sq.
    """
    c = ffi()
    p = work.problem

    def tensor(found: dlpack.Exported) -> tuple[Any, ...]:
        strides = _strides(found)
        if strides is None:
            msg = f"strides {found.strides} cannot be given to the Metal library"
            raise MetalError(msg)
        return c.cast("void *", found.buffer), found.offset, c.new("int64_t[4]", strides)

    mask: tuple[Any, ...] = (c.NULL, 0, c.NULL, c.NULL, 0, _MASK_NONE, 0)
    if work.mask is not None:
        # Sizes of 1 broadcast, whatever their stride.
        sizes, steps = (c.new("int64_t[4]", x) for x in (work.mask.shape, work.mask.strides))
        mask = (
            c.cast("void *", work.mask.buffer), work.mask.offset, sizes, steps, 4,
            _MASK_ADDITIVE, _SCALAR_FP32,
        )  # fmt: skip
    operands = (tensor(work.q), tensor(work.k), tensor(work.v))
    code: int = engine.lib.lib.mfa_attention_encode_mtl(
        engine.context.handle,
        c.cast("void *", objc.pyobjc_id(commands)),
        *operands[0],
        *operands[1],
        *operands[2],
        c.cast("void *", work.out.buffer),
        work.out.offset,
        *mask,
        p.batch,
        p.seq_q,
        p.seq_kv,
        p.heads_q,
        p.head_dim,
        work.scale,
        p.mask == "causal",
        PRECISIONS[p.dtype].encode(),
        work.intermediate.encode(),
    )
    # On failure the library has also printed to standard output. Nothing is caught here: pointing
    # the process's output elsewhere would swallow other threads' lines. Validation runs in a child.
    return code
