"""From ``scaled_dot_product_attention`` to the result, over the stand-in Metal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa.errors import MetalError, NativeError
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.base import Call
from qwen_mfa.kernels.metal import execute
from qwen_mfa.problem import describe
from qwen_mfa.selection import choose
from tests.qwen_mfa.attention.problems import Shape, as_numpy, assert_exact, draw

if TYPE_CHECKING:
    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = pytest.mark.cpu

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
SHAPE = Shape(b=2, hq=3, hkv=3, sq=13, skv=21, d=16, dv=16)


def attend(call: Call, kernel: metal.MetalKernel = metal.accurate) -> mx.array:
    """Run one kernel as dispatch would, without its safety net."""
    mx.eval(call.arrays())
    problem = describe(call.q, call.k, call.v, call.mask)
    assert problem is not None
    assert kernel.refuses(problem) is None
    return kernel.run(call)


def masks(shape: Shape) -> dict[str, mx.array | str | None]:
    rng = np.random.default_rng(5)
    full = (shape.b, shape.hq, shape.sq, shape.skv)
    keep = rng.random(full) > 0.3
    keep[..., 0] = True
    bias = rng.standard_normal(full, dtype=np.float32) * 3
    holes = np.where(keep, bias, -np.inf)
    return {
        "none": None,
        "bool": mx.array(keep),
        "bool, one head": mx.array(keep[:, :1]),
        "bool, 2 dimensions": mx.array(keep[0, 0]),
        "additive": mx.array(bias),
        "additive with -inf": mx.array(holes),
        "additive, per key": mx.array(bias[:1, :1, :1]),
        "additive, one for all keys": mx.array(bias[..., :1]),
        "additive, far from zero": mx.array(holes - 1e6),
        "additive of -1e9": mx.array(np.where(keep, 0, -1e9).astype(np.float32)[:, :1, :1]),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(masks(SHAPE)))
def test_public_function_gives_the_right_numbers(
    mac: StandinMac, dtype: mx.Dtype, name: str
) -> None:
    q, k, v = draw(SHAPE, dtype, interleaved=True)
    mask = masks(SHAPE)[name]
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        mask = mask.astype(dtype)
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.2, mask=mask)
    assert out.dtype == dtype
    assert mac.count("runs") == 2, "a throw-away run, and the real one"
    factor = 4.0 if name == "additive, far from zero" and dtype == mx.float32 else 1.0
    assert_exact(out, Call(q=q, k=k, v=v, scale=0.2, mask=mask), factor=factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_mlx(mac: StandinMac, dtype: mx.Dtype) -> None:
    q, k, v = draw(SHAPE, dtype)
    ours = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.25)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25)
    tolerance = {mx.float32: 2e-6, mx.float16: 4e-3, mx.bfloat16: 3e-2}[dtype]
    assert np.abs(as_numpy(ours) - as_numpy(theirs)).max() < tolerance
    assert mac.count("runs") == 2


def test_dispatch_chooses_it(mac: StandinMac) -> None:
    q, k, v = draw(SHAPE)
    problem = describe(q, k, v)
    assert problem is not None
    assert choose.choose(problem).kernel is metal.accurate
    del mac


def test_causal_where_both_alignments_agree(mac: StandinMac) -> None:
    q, k, v = draw(Shape(sq=19, skv=19, d=16, dv=16))
    call = Call(q=q, k=k, v=v, scale=0.25, mask="causal")
    assert_exact(attend(call), call)
    assert mac.count("runs") == 2


def test_rows_without_keys(mac: StandinMac) -> None:
    """Zeros for an additive mask, the mean of the values for a bool one: as everywhere else."""
    q, k, v = draw(SHAPE)
    keep = np.ones((1, 1, SHAPE.sq, SHAPE.skv), dtype=bool)
    keep[0, 0, 4] = False
    for mask in (mx.array(keep), mx.array(np.where(keep, 0, -np.inf).astype(np.float32))):
        call = Call(q=q, k=k, v=v, scale=0.25, mask=mask)
        assert_exact(attend(call), call)
    assert mac.count("runs") == 3


def test_nothing_of_mlx_s_is_under_way_when_the_output_is_written(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mx.empty` fills on a GPU: a fill that came late would take the result with it."""
    log: list[str] = []
    watched = {"mx.eval": (mx, "eval"), "wait": (mx, "synchronize"), "run": (execute, "_perform")}
    for word, (owner, name) in watched.items():
        real = getattr(owner, name)

        def logged(*args: Any, word: str = word, real: Any = real) -> Any:
            log.append(word)
            return real(*args)

        monkeypatch.setattr(owner, name, logged)
    made = execute.fresh

    def fresh(*args: Any, **options: Any) -> mx.array:
        log.append("make")
        return made(*args, **options)

    monkeypatch.setattr(execute, "fresh", fresh)
    call = Call(**dict(zip("qkv", draw(SHAPE), strict=True)), scale=0.25)
    mx.eval(attend(call))
    after = log[log.index("make") :]
    assert after[: after.index("run")] == ["make", "mx.eval", "wait"]
    del mac


def oddly(x: mx.array, *, start: int, gap: int) -> mx.array:
    """Return ``x`` in memory that begins ``start`` elements in, with ``gap`` more for each head."""
    b, h, s, d = x.shape
    step = s * d + gap
    rows = mx.pad(x.reshape(b * h, s * d), [(0, 0), (0, gap)]).reshape(-1)
    flat = mx.contiguous(mx.pad(rows, [(start, 8)]))
    return mx.as_strided(flat, x.shape, (h * step, step, d, 1), start)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(("start", "gap"), [(1, 0), (0, 1), (3, 2)])
def test_pairs_of_elements_are_never_split(
    mac: StandinMac, dtype: mx.Dtype, start: int, gap: int
) -> None:
    q, k, v = (oddly(x, start=start, gap=gap) for x in draw(SHAPE, dtype))
    call = Call(q=q, k=k, v=v, scale=0.25)
    assert_exact(attend(call), call)
    assert mac.count("runs") == 2


@pytest.mark.parametrize("layout", ["dense", "interleaved", "sliced", "broadcast", "reversed"])
def test_layouts(mac: StandinMac, layout: str) -> None:
    q, k, v = draw(SHAPE, interleaved=layout == "interleaved")
    if layout == "sliced":
        wide = draw(Shape(b=2, hq=4, hkv=4, sq=17, skv=25, d=24, dv=24))
        q = wide[0][:, 1:, 2:15, :16]
        k, v = (x[:, 1:, 2:23, :16] for x in wide[1:])
    if layout == "broadcast":  # strides of 0 have to be copied away
        k = mx.broadcast_to(k[:, :1], k.shape)
    if layout == "reversed":  # as has a last dimension that is not contiguous
        v = mx.contiguous(v.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    call = Call(q=q, k=k, v=v, scale=0.25)
    assert_exact(attend(call), call)
    assert mac.count("runs") == 2


def test_sizes_of_one_may_have_any_stride(mac: StandinMac) -> None:
    q, k, v = (x[:1, :1] for x in draw(SHAPE))
    call = Call(q=mx.broadcast_to(q[:, :, :1], (1, 1, 1, 16)), k=k, v=v, scale=0.25)
    assert_exact(attend(call), call)
    assert mac.count("runs") == 2


def test_low_precision_is_a_kernel_of_its_own(mac: StandinMac) -> None:
    q, k, v = draw(SHAPE, mx.bfloat16)
    call = Call(q=q, k=k, v=v, scale=0.25)
    assert_exact(attend(call, metal.low), call)
    exact, low = attend(call, metal.accurate), attend(call, metal.low)
    assert mac.count("compiles") == 2
    assert np.abs(as_numpy(exact) - as_numpy(low)).max() < 2e-2


@pytest.mark.parametrize("family", [7, 8, 9, 10])
def test_every_gpu_family_computes_all_heads(mac: StandinMac, family: int) -> None:
    mac.switch(family=family)
    q, k, v = draw(SHAPE)
    call = Call(q=q, k=k, v=v, scale=0.25)
    assert_exact(attend(call), call)
    assert mac.count("forwards") == 0


def test_throw_away_run_once_for_each_lengths(mac: StandinMac) -> None:
    for sq, runs in ((13, 2), (13, 3), (14, 5), (13, 6)):
        q, k, v = draw(Shape(sq=sq, skv=21, d=16, dv=16))
        call = Call(q=q, k=k, v=v, scale=0.25)
        assert_exact(attend(call), call)
        assert mac.count("runs") == runs


def test_every_result_is_an_array_of_its_own(mac: StandinMac) -> None:
    q, k, v = draw(SHAPE)
    calls = [Call(q=q, k=k, v=x, scale=0.25) for x in (v, v + 1)]
    first, second = (attend(call) for call in calls)
    later = first * 1  # lazy, and still to read the first result
    assert_exact(second, calls[1])
    assert_exact(later, calls[0])
    del mac


def test_nothing_is_left_over_after_many_calls(mac: StandinMac) -> None:
    q, k, v = draw(Shape(hq=1, hkv=1, sq=2, skv=2, d=8, dv=8))
    mask = mx.array([[0.0, 1.0]])
    before = {name: mac.count(name) for name in ("live_commands", "live_buffers")}
    for _ in range(2000):
        attend(Call(q=q, k=k, v=v, scale=0.25, mask=mask))
    assert {name: mac.count(name) for name in before} == before
    assert mac.library.standin_pool_depth() == 0


def test_threads(mac: StandinMac) -> None:
    mac.switch(encode_us=2000)
    q, k, v = draw(SHAPE)
    mask = mx.zeros((SHAPE.sq, SHAPE.skv))
    mx.eval(q, k, v, mask)
    call = Call(q=q, k=k, v=v, scale=0.25, mask=mask)
    problem = describe(q, k, v, mask)
    assert problem is not None
    results: list[np.ndarray] = []

    def work() -> None:
        for _ in range(4):
            with mx.stream(mx.new_stream(mx.cpu)):
                results.append(np.array(metal.accurate.run(call)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert all(np.array_equal(results[0], x) for x in results)
    assert mac.count("runs") == 17


@pytest.mark.parametrize(
    ("switch", "code"), [({"encode_code": 4}, 4), ({"encode_code": 5}, 5), ({"gpu_error": 1}, 5)]
)
def test_failures_are_errors_and_mlx_answers(
    mac: StandinMac, switch: dict[str, int], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = draw(SHAPE)
    call = Call(q=q, k=k, v=v, scale=0.25)
    mac.switch(**switch)
    with pytest.raises(NativeError) as raised:
        attend(call)
    assert raised.value.code == code
    assert raised.value.text
    mac.switch(**switch)
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert_exact(out, call, factor=2)
    assert "metal" in caplog.text
    assert mac.count("commits") == (2 if "gpu_error" in switch else 0)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf"), float("nan")])
def test_scales_that_the_library_cannot_take_are_mlx_s(mac: StandinMac, scale: float) -> None:
    q, k, v = draw(SHAPE)
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=scale)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    assert np.array_equal(as_numpy(out), as_numpy(theirs), equal_nan=True)
    assert mac.count("encodes") == 0


def test_ever_new_scales_do_not_compile_for_ever(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "MAX_SCALES", 5)
    q, k, v = draw(Shape(hq=1, hkv=1, sq=3, skv=3, d=8, dv=8))
    for number in range(5):
        call = Call(q=q, k=k, v=v, scale=0.1 + number / 100)
        assert_exact(attend(call), call)
    with pytest.raises(MetalError, match="more than 5 softmax scales"):
        attend(Call(q=q, k=k, v=v, scale=0.9))
    assert mac.count("compiles") == 5
    assert_exact(attend(call), call)


def test_gradients_are_mlx_s(mac: StandinMac) -> None:
    q, k, v = draw(Shape(sq=5, skv=7, d=8, dv=8))

    def loss(function: object) -> mx.array:
        return mx.grad(lambda x: (function(x, k, v, scale=0.3) ** 2).sum())(q)  # type: ignore[operator]

    ours, theirs = (
        loss(qwen_mfa.scaled_dot_product_attention),
        loss(mx.fast.scaled_dot_product_attention),
    )
    assert np.abs(as_numpy(theirs)).max() > 1e-3
    assert np.allclose(as_numpy(ours), as_numpy(theirs), atol=1e-4)
    assert mac.count("runs") > 0


def test_inside_compile_the_graph_is_mlx_s(mac: StandinMac) -> None:
    q, k, v = draw(SHAPE)
    function = mx.compile(lambda x: qwen_mfa.scaled_dot_product_attention(x, k, v, scale=0.25))
    assert_exact(function(q), Call(q=q, k=k, v=v, scale=0.25))
    assert mac.count("encodes") == 0
