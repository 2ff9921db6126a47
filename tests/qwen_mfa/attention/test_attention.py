"""The operation against float64 and against MLX, over everything that its signature allows."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa.kernels import cpu
from qwen_mfa.kernels.base import Call
from qwen_mfa.native import library
from qwen_mfa.problem import describe
from qwen_mfa.selection import choose

from .problems import Shape, as_numpy, assert_exact, draw

pytestmark = pytest.mark.cpu

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
NAMES = ["float32", "float16", "bfloat16"]


def attend(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    """Run the operation and insist that the portable engine, not MLX, computed it."""
    options.setdefault("scale", q.shape[-1] ** -0.5)
    problem = describe(q, k, v, options.get("mask"), options.get("sinks"))
    assert problem is not None
    assert choose.choose(problem).kernel is cpu, choose.choose(problem).reason
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, **options)
    assert choose.choose(problem).kernel is cpu, "the engine failed and MLX answered"
    return out


def check(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    scale = options.setdefault("scale", q.shape[-1] ** -0.5)
    out = attend(q, k, v, **options)
    call = Call(q=q, k=k, v=v, scale=scale, mask=options.get("mask"), sinks=options.get("sinks"))
    assert_exact(out, call)
    return out


def test_the_wheel_carries_a_library() -> None:
    assert library.load().origin == "embedded"
    assert library.load().is_portable


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("interleaved", [False, True], ids=["bhsd", "bshd-view"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(b=2, hq=3, hkv=3, sq=1, skv=1, d=1, dv=1),
        Shape(sq=1, skv=300, d=128, dv=128),
        Shape(sq=200, skv=7, d=80, dv=80),
        Shape(b=2, hq=6, hkv=2, sq=65, skv=129, d=96, dv=96),
        Shape(hq=8, hkv=1, sq=17, skv=31, d=33, dv=33),
        Shape(sq=40, skv=50, d=48, dv=20),
        Shape(hq=1, hkv=1, sq=19, skv=23, d=1024, dv=1024),
        Shape(b=1, hq=2, hkv=2, sq=520, skv=1030, d=128, dv=128),
    ],
    ids=str,
)
def test_shapes(shape: Shape, interleaved: bool, dtype: mx.Dtype) -> None:
    out = check(*draw(shape, dtype, interleaved=interleaved))
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize(("sq", "skv"), [(40, 40), (10, 50), (1, 9), (129, 300)])
def test_causal_is_bottom_right(sq: int, skv: int, dtype: mx.Dtype) -> None:
    check(*draw(Shape(sq=sq, skv=skv), dtype), mask="causal")


@pytest.mark.parametrize(
    "mask_shape", [(2, 4, 33, 47), (2, 1, 1, 47), (1, 4, 33, 1), (47,), (33, 47), (1,)]
)
@pytest.mark.parametrize("kind", ["bool", "float32", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize("heads_kv", [4, 2])
def test_masks(mask_shape: tuple[int, ...], kind: str, heads_kv: int) -> None:
    rng = np.random.default_rng(3)
    if kind == "bool":
        mask = mx.array(rng.random(mask_shape) < 0.7)
    else:
        mask = mx.array(rng.normal(size=mask_shape) * 4).astype(getattr(mx, kind))
    check(*draw(Shape(b=2, hq=4, hkv=heads_kv)), mask=mask)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_additive_mask_in_sixteen_bits(dtype: mx.Dtype) -> None:
    mask = mx.array(np.random.default_rng(3).normal(size=(33, 47))).astype(dtype)
    check(*draw(Shape(), dtype), mask=mask)


def test_strided_and_broadcast_masks() -> None:
    base = mx.random.uniform(shape=(47, 33)) < 0.6
    check(*draw(Shape()), mask=base.T)
    wide = mx.random.normal((33, 94))
    check(*draw(Shape()), mask=wide[:, ::2])
    check(*draw(Shape()), mask=wide[::-1, 47:])
    check(*draw(Shape()), mask=mx.broadcast_to(mx.random.normal((1, 47)), (33, 47)))


def test_minus_infinity_in_an_additive_mask() -> None:
    mask = mx.where(mx.arange(47) < 20, 0.0, -mx.inf)
    out = check(*draw(Shape()), mask=mask)
    q, k, v = draw(Shape())
    short = check(q, k[:, :, :20], v[:, :, :20])
    assert mx.abs(out - short).max().item() < 1e-6


def test_rows_without_keys() -> None:
    q, k, v = draw(Shape())
    mask = mx.arange(33)[:, None] != 5
    mask = mx.broadcast_to(mask, (33, 47))
    out = check(q, k, v, mask=mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=64**-0.5, mask=mask)
    assert mx.abs(out - theirs).max().item() < 1e-5  # MLX: the mean of the values
    hidden = mx.where(mx.arange(33)[:, None] == 5, -mx.inf, mx.zeros((33, 47)))
    out = check(q, k, v, mask=hidden)
    assert not np.any(as_numpy(out)[:, :, 5])  # MLX gives NaN here: zeros are documented


def test_more_queries_than_keys_under_causal() -> None:
    q, k, v = draw(Shape(sq=60, skv=20))
    out = check(q, k, v, mask="causal")
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=64**-0.5, mask="causal")
    assert mx.abs(out - theirs).max().item() < 1e-5


@pytest.mark.parametrize("mask", [None, "causal", "bool"])
def test_sinks(mask: str | None) -> None:
    q, k, v = draw(Shape(hq=4, hkv=2))
    array = mx.random.uniform(shape=(33, 47)) < 0.5 if mask == "bool" else mask
    sinks = mx.array([0.5, -2.0, 3.0, 0.0])
    out = check(q, k, v, mask=array, sinks=sinks)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=64**-0.5, mask=array, sinks=sinks)
    assert mx.abs(out - theirs).max().item() < 1e-5
    check(q, k, v, mask=array, sinks=mx.arange(8.0)[::2])


def test_mixed_dtypes_promote_as_in_mlx() -> None:
    q, k, v = draw(Shape())
    mixed = (q.astype(mx.float16), k.astype(mx.float32), v.astype(mx.bfloat16))
    out = attend(*mixed)
    theirs = mx.fast.scaled_dot_product_attention(*mixed, scale=0.125)
    assert out.dtype == theirs.dtype == mx.float32
    assert mx.abs(out - theirs).max().item() < 1e-5


def test_views_go_in_as_they_are() -> None:
    rng = np.random.default_rng(0)
    packed = mx.array(rng.standard_normal((2, 50, 3, 4, 64), dtype=np.float32))
    q, k, v = (packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    check(q, k, v)
    check(q[:, 1:3, 10:30], k[:, 1:3, ::3], v[:, 1:3, ::3])
    check(q[:, ::-1], k[:, :, ::-1], v[:, :, ::-1])
    check(mx.broadcast_to(q[:1, :1], q.shape), k, mx.broadcast_to(v[:, :, :1], v.shape))
    keys = mx.array(rng.standard_normal((2, 4, 64, 50), dtype=np.float32))
    check(q, keys.swapaxes(-1, -2), v)  # the last dimension is not contiguous


def test_interleaved_inputs_give_interleaved_outputs() -> None:
    q, k, v = draw(Shape(b=2, hq=3, hkv=3), interleaved=True)
    out = attend(q, k, v)
    steps = memoryview(out).strides  # type: ignore[arg-type]
    assert steps == (33 * 3 * 64 * 4, 64 * 4, 3 * 64 * 4, 4)
    assert memoryview(attend(*draw(Shape()))).c_contiguous  # type: ignore[arg-type]


def test_inputs_are_left_alone() -> None:
    q, k, v = draw(Shape())
    mask = mx.random.normal((33, 47))
    before = [np.array(x) for x in (q, k, v, mask)]
    attend(q, k, v, mask=mask)
    for kept, now in zip(before, (q, k, v, mask), strict=True):
        np.testing.assert_array_equal(kept, np.array(now))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinities_and_nan_stay_in_their_rows(value: float) -> None:
    q, k, v = draw(Shape())
    poisoned = np.array(q)
    poisoned[0, 1, 7, 3] = value
    out = as_numpy(attend(mx.array(poisoned), k, v))
    clean = as_numpy(attend(q, k, v))
    out[0, 1, 7] = clean[0, 1, 7] = 0
    np.testing.assert_allclose(out, clean, atol=1e-6)


def test_numbers_of_any_size() -> None:
    q, k, v = draw(Shape())
    check(q * 100, k * 100, v)
    check(q, k, v, scale=0.0)
    check(q, k, v, scale=-1.0)
    check(q, k, v * 1e30)


@pytest.mark.not_on_cuda("its own attention crashes on some empty arrays (0.32.4)")
@pytest.mark.parametrize(
    "shape", [Shape(b=0), Shape(sq=0), Shape(skv=0), Shape(d=0), Shape(dv=0)], ids=str
)
def test_empty(shape: Shape) -> None:
    q, k, v = draw(shape)
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=1.0)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert out.shape == theirs.shape
    assert mx.array_equal(out, theirs)


def _bad_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    q, k, v = draw(Shape(hq=4, hkv=4))
    ok = {"scale": 1.0}
    return {
        "rank": ((q[0], k, v), ok),
        "batch": ((q, mx.concatenate([k, k]), v), ok),
        "head_dim": ((q, k[..., :3], v), ok),
        "kv heads": ((q, k[:, :2], v), ok),
        "heads not a multiple": ((q, k[:, :3], v[:, :3]), ok),
        "kv length": ((q, k[:, :, :5], v), ok),
        "integers": ((q.astype(mx.int32), k.astype(mx.int32), v.astype(mx.int32)), ok),
        "mask word": ((q, k, v), {"scale": 1.0, "mask": "diagonal"}),
        "mask shape": ((q, k, v), {"scale": 1.0, "mask": mx.zeros((33, 46))}),
        "mask rank": ((q, k, v), {"scale": 1.0, "mask": mx.zeros((1, 1, 1, 33, 47))}),
        "mask dtype": (
            (q.astype(mx.float16), k.astype(mx.float16), v.astype(mx.float16)),
            {"scale": 1.0, "mask": mx.zeros((33, 47))},
        ),
        "mask type": ((q, k, v), {"scale": 1.0, "mask": [[0.0]]}),
        "sinks shape": ((q, k, v), {"scale": 1.0, "sinks": mx.zeros((3,))}),
        "scale missing": ((q, k, v), {}),
        "scale type": ((q, k, v), {"scale": "big"}),
        "not arrays": ((1, 2, 3), ok),
        "unknown option": ((q, k, v), {"scale": 1.0, "dropout": 0.1}),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_misuse_raises_as_mlx_does(name: str) -> None:
    args, options = _bad_calls()[name]

    def outcome(function: Any) -> type[Exception] | None:
        try:
            mx.eval(function(*args, **options))
        except Exception as error:  # noqa: BLE001 - the kind of error is what is compared
            return type(error)
        return None

    theirs = outcome(mx.fast.scaled_dot_product_attention)
    assert outcome(qwen_mfa.scaled_dot_product_attention) is theirs
    assert theirs is not None


def test_same_signature_as_mlx() -> None:
    ours = inspect.signature(qwen_mfa.scaled_dot_product_attention)
    documented = (mx.fast.scaled_dot_product_attention.__doc__ or "").partition("->")[0]
    for name, parameter in ours.parameters.items():
        assert f"{name}:" in documented
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (name not in "qkv")
    assert len(ours.parameters) == documented.count(":")


def test_other_float_types_go_to_mlx() -> None:
    q, k, v = (x.astype(mx.float64) for x in draw(Shape()))
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.125)
    assert out.dtype == mx.float64
