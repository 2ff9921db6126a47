"""Every memory layout that an array can have, for every operand: computed here, never refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.kernels.base import Call

from .problems import assert_exact

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cpu

HEADS, ROWS, DIM = 4, 33, 64
SHAPE = (1, HEADS, ROWS, DIM)


def _normal(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    numbers = mx.random.normal(shape, key=mx.random.key(5))
    return numbers > -1 if dtype == mx.bool_ else numbers.astype(dtype)


def _wide(dtype: mx.Dtype, *factors: int) -> mx.array:
    shape = tuple(n * factor for n, factor in zip(SHAPE, factors, strict=True))
    return _normal(shape, dtype)


# Each gives an array of SHAPE.
LAYOUTS: dict[str, Callable[[mx.Dtype], mx.array]] = {
    "dense": lambda t: _wide(t, 1, 1, 1, 1),
    "last dimension broadcast": lambda t: mx.broadcast_to(_wide(t, 1, 1, 1, 1)[..., :1], SHAPE),
    "rows broadcast": lambda t: mx.broadcast_to(_wide(t, 1, 1, 1, 1)[:, :, :1], SHAPE),
    "heads broadcast": lambda t: mx.broadcast_to(_wide(t, 1, 1, 1, 1)[:, :1], SHAPE),
    "one number": lambda t: mx.broadcast_to(mx.array(0.5, dtype=t), SHAPE),
    "every second element": lambda t: _wide(t, 1, 1, 1, 2)[..., ::2],
    "every second row": lambda t: _wide(t, 1, 1, 2, 1)[:, :, ::2],
    "every second head": lambda t: _wide(t, 1, 2, 1, 1)[:, ::2],
    "elements backwards": lambda t: _wide(t, 1, 1, 1, 1)[..., ::-1],
    "rows backwards": lambda t: _wide(t, 1, 1, 1, 1)[:, :, ::-1],
    "heads backwards": lambda t: _wide(t, 1, 1, 1, 1)[:, ::-1],
    "odd offset": lambda t: _wide(t, 1, 1, 1, 2)[..., 1 : 1 + DIM],
    "odd row stride": lambda t: _normal((1, HEADS, ROWS, DIM + 1), t)[..., 1:],
    "transposed": lambda t: _normal((1, HEADS, DIM, ROWS), t).swapaxes(2, 3),
    "a batch of a larger batch": lambda t: _wide(t, 3, 1, 1, 1)[1:2],
    "a batch backwards": lambda t: _wide(t, 3, 1, 1, 1)[2:1:-1],
}


def check(call: Call) -> None:
    out = qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask, sinks=call.sinks
    )
    assert_exact(out, call)
    stats = qwen_mfa.stats()
    assert stats.calls == {"cpu": 1}, stats.reasons
    assert stats.quarantined == {}


@pytest.fixture(autouse=True)
def from_zero() -> None:
    from qwen_mfa import telemetry

    telemetry.start()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("operand", ["q", "k", "v"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands(layout: str, operand: str, dtype: mx.Dtype) -> None:
    dense = mx.random.normal(SHAPE, key=mx.random.key(7)).astype(dtype)
    arrays = {"q": dense, "k": dense * 0.5, "v": dense * 2}
    arrays[operand] = LAYOUTS[layout](dtype)
    check(Call(**arrays, scale=0.125))


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks(layout: str, kind: str) -> None:
    q, k, v = (mx.random.normal(SHAPE, key=mx.random.key(n)) for n in range(3))
    k, v = (mx.concatenate([x, x], axis=2)[:, :, :DIM] for x in (k, v))
    mask = LAYOUTS[layout](mx.float32)
    if kind == "bool":
        # One in six is hidden: no row of 64 keys is without any, unless it is one number.
        mask = LAYOUTS[layout](mx.bool_)
    check(Call(q=q, k=k, v=v, scale=0.125, mask=mask))


@pytest.mark.parametrize(
    "sinks",
    [
        mx.broadcast_to(mx.array(0.5), (HEADS,)),
        mx.random.normal((HEADS * 2,))[::2],
        mx.random.normal((HEADS,))[::-1],
        mx.random.normal((HEADS + 1,))[1:],
    ],
    ids=["broadcast", "every second", "backwards", "offset"],
)
def test_sinks(sinks: mx.array) -> None:
    q, k, v = (mx.random.normal(SHAPE, key=mx.random.key(n)) for n in range(3))
    check(Call(q=q, k=k, v=v, scale=0.125, sinks=sinks))
