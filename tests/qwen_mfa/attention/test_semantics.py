"""MLX's semantics with ours in the place of its function, for every kernel that runs here.

What MLX's own tests of the function go through: shapes, grouped heads, transposed operands, masks
of every kind and rank, sinks, scales, promotion, misuse, gradients, and vector against matrix.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa.kernels import mlx as mlx_kernel
from qwen_mfa.selection import session

pytestmark = pytest.mark.cpu

TOLERANCE = {mx.float32: 2e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}
original = mlx_kernel.attention


@pytest.fixture(params=["cpu", "mlx", "auto"], autouse=True)
def in_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_BACKEND", request.param)
    monkeypatch.setenv("QWEN_MFA_TUNE", "0" if request.param == "auto" else "1")
    session.start()
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", ours := _ours())
    assert mx.fast.scaled_dot_product_attention is ours


def _ours() -> Any:
    return qwen_mfa.scaled_dot_product_attention


def plain(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any = None) -> mx.array:
    """Attention in plain operations, in float32."""
    q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(x, repeat, axis=1) for x in (k, v))
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if isinstance(mask, str):
        rows, keys = scores.shape[-2:]
        mask = mx.arange(keys)[None] <= mx.arange(rows)[:, None] + (keys - rows)
    if mask is not None:
        hides = mask.dtype == mx.bool_
        scores = mx.where(mask, scores, -mx.inf) if hides else scores + mask.astype(mx.float32)
    return mx.softmax(scores, axis=-1) @ v


def close(got: mx.array, want: mx.array) -> None:
    assert got.shape == want.shape
    error = mx.abs(got.astype(mx.float32) - want).max().item()
    assert error <= TOLERANCE[got.dtype], error


def draw(hq: int, hkv: int, sq: int, skv: int, d: int, dtype: mx.Dtype, b: int = 2) -> Any:
    rng = np.random.default_rng(sq * 31 + skv)
    sizes = ((hq, sq), (hkv, skv), (hkv, skv))
    return [mx.array(rng.normal(size=(b, h, s, d)) * 0.5).astype(dtype) for h, s in sizes]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("sq", "skv"), [(1, 40), (7, 40), (40, 40), (65, 130)])
@pytest.mark.parametrize(("hq", "hkv"), [(4, 4), (8, 2), (4, 1)])
def test_shapes_and_masks(hq: int, hkv: int, sq: int, skv: int, dtype: mx.Dtype) -> None:
    q, k, v = draw(hq, hkv, sq, skv, 64, dtype)
    keep = mx.array(np.random.default_rng(1).random((2, 1, sq, skv)) < 0.7) | (mx.arange(skv) == 0)
    bias = mx.array(np.random.default_rng(2).normal(size=(sq, skv))).astype(dtype)
    for mask in (None, "causal", keep, keep[:1, 0], bias, bias[:1]):
        got = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
        assert got.dtype == dtype
        close(got, plain(q, k, v, 0.3, mask))


@pytest.mark.parametrize("d", [32, 64, 80, 96, 128, 256])
def test_head_dimensions_and_transposed_operands(d: int) -> None:
    q, k, v = draw(4, 2, 33, 47, d, mx.float32)
    turned = [mx.contiguous(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)]
    columns = [mx.contiguous(x.swapaxes(2, 3)).swapaxes(2, 3) for x in (q, k, v)]
    for mix in itertools.islice(
        itertools.product(*zip([q, k, v], turned, columns, strict=True)), 27
    ):
        close(mx.fast.scaled_dot_product_attention(*mix, scale=0.2), plain(q, k, v, 0.2))


def test_sinks() -> None:
    q, k, v = draw(8, 2, 20, 30, 64, mx.float32)
    sinks = mx.random.normal((8,))
    got = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.2, sinks=sinks)
    close(got, original(q, k, v, scale=0.2, sinks=sinks))


def test_promotion() -> None:
    q, k, v = draw(2, 2, 9, 9, 32, mx.float16)
    got = mx.fast.scaled_dot_product_attention(q.astype(mx.float32), k, v, scale=1.0)
    assert got.dtype == mx.float32
    close(got, plain(q, k, v, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"q": x.q[0]},
        lambda x: {"k": x.k[..., :-1]},
        lambda x: {"v": x.v[:, :, :-1]},
        lambda x: {"q": x.q[:, :3]},
        lambda _: {"mask": "diagonal"},
        lambda _: {"mask": mx.zeros((3, 3))},
        lambda x: {name: getattr(x, name).astype(mx.int32) for name in "qkv"},
    ],
    ids=["rank", "head dim", "keys", "heads", "word", "mask shape", "integers"],
)
def test_misuse_raises_what_mlx_raises(change: Any) -> None:
    q, k, v = draw(4, 2, 9, 9, 32, mx.float32)
    arguments = {"q": q, "k": k, "v": v, "mask": None, **change(SimpleNamespace(q=q, k=k, v=v))}
    operands = [arguments.pop(name) for name in ("q", "k", "v")]

    def attempt(function: Any) -> tuple[type, str]:
        try:
            mx.eval(function(*operands, scale=0.2, **arguments))
        except (ValueError, TypeError, RuntimeError) as error:
            return type(error), str(error)
        return type(None), ""

    mine, theirs = attempt(mx.fast.scaled_dot_product_attention), attempt(original)
    assert mine == theirs


def test_gradients() -> None:
    q, k, v = draw(4, 2, 12, 20, 32, mx.float32)

    def loss(function: Any, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (function(q, k, v, scale=0.2, mask="causal") ** 2).sum()

    mine = mx.grad(lambda *x: loss(mx.fast.scaled_dot_product_attention, *x), argnums=(0, 1, 2))
    theirs = mx.grad(lambda *x: loss(original, *x), argnums=(0, 1, 2))
    for a, b in zip(mine(q, k, v), theirs(q, k, v), strict=True):
        assert mx.abs(a - b).max().item() < 1e-4
