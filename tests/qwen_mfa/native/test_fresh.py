"""Fresh outputs: laid out as asked, and nobody else's memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from qwen_mfa.native import buffers
from qwen_mfa.native.buffers import borrow, fresh

pytestmark = pytest.mark.cpu

SHAPE = (1, 3, 5, 8)


def drawn(layout: str, dtype: mx.Dtype, shape: tuple[int, ...] = SHAPE) -> mx.array:
    batch, heads, rows, dim = shape
    if layout == "interleaved":
        array = mx.random.normal((batch, rows, heads, dim)).astype(dtype).transpose(0, 2, 1, 3)
    elif layout == "sliced":
        array = mx.random.normal((batch, heads, rows, 2 * dim)).astype(dtype)[..., :dim]
    elif layout == "broadcast":
        array = mx.broadcast_to(mx.random.normal((1, 1, rows, dim)).astype(dtype), shape)
    else:
        array = mx.random.normal(shape).astype(dtype)
    mx.eval(array)
    return array


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("like", ["dense", "interleaved", "sliced", "broadcast", "other", None])
@pytest.mark.parametrize("interleaved", [False, True])
def test_layout_and_memory(dtype: mx.Dtype, like: str | None, interleaved: bool) -> None:
    shape = (1, 3, 4, 8) if like == "other" else SHAPE
    source = None if like is None else drawn(like, dtype, shape)
    before = None if source is None else np.array(source.astype(mx.float32))
    lent = None if source is None else borrow(source)
    out = fresh(SHAPE, dtype, interleaved=interleaved, like=lent)
    assert (out.shape, out.dtype) == (SHAPE, dtype)
    _, heads, rows, dim = SHAPE
    steps = (dim, heads * dim) if interleaved else (rows * dim, dim)
    assert borrow(out).strides[1:] == (*steps, 1)
    if source is None or lent is None or before is None:
        return
    view = memoryview(out)  # type: ignore[arg-type]
    assert not view.readonly
    borrowed = borrow(out)
    ffi = buffers.ffi()
    assert ffi.cast("size_t", borrowed.pointer) != ffi.cast("size_t", lent.pointer)
    ffi.memmove(borrowed.pointer, b"\xff" * borrowed.span, borrowed.span)
    assert np.array_equal(np.array(source.astype(mx.float32)), before)


def test_every_call_has_its_own_memory() -> None:
    source = borrow(drawn("dense", mx.float32))
    kept = [fresh(SHAPE, mx.float32, interleaved=False, like=source) for _ in range(9)]
    ffi = buffers.ffi()
    assert len({int(ffi.cast("size_t", borrow(array).pointer)) for array in kept}) == 9


def test_large_ones_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> mx.array:
        raise AssertionError

    monkeypatch.setattr(buffers.mx, "from_dlpack", fail)
    large = drawn("dense", mx.float32, (1, 2, 1100, 512))
    assert fresh((1, 2, 1100, 512), mx.float32, interleaved=False, like=borrow(large)).size
    with pytest.raises(AssertionError):
        fresh(SHAPE, mx.float32, interleaved=False, like=borrow(drawn("dense", mx.float32)))
