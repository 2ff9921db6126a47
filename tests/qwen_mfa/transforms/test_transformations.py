"""Inside MLX's transformations, threads, streams and forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa.selection import session
from tests.qwen_mfa.attention.problems import Shape, as_numpy, draw

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("native_kernel")]

SCALE = 0.125


def ours(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    return qwen_mfa.scaled_dot_product_attention(q, k, v, scale=SCALE, **options)


def theirs(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, **options)


def close(a: mx.array, b: mx.array, *, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(as_numpy(a), as_numpy(b), atol=atol, rtol=1e-5)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "causal": lambda: {"mask": "causal"},
    "bool": lambda: {"mask": mx.arange(47) < 30},
    "additive": lambda: {"mask": mx.random.normal((33, 47), key=mx.random.key(1))},
    "sinks": lambda: {"sinks": mx.array([0.3, -1.0])},
    "mask and sinks": lambda: {"mask": mx.arange(47) < 30, "sinks": mx.array([0.3, -1.0])},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_mlx_s_exactly(name: str) -> None:
    q, k, v = draw(Shape())
    options = OPTIONS[name]()

    def loss(attend: Any) -> Callable[..., mx.array]:
        return lambda q, k, v: (attend(q, k, v, **options) * mx.arange(64)).sum()

    got = mx.grad(loss(ours), argnums=(0, 1, 2))(q, k, v)
    expected = mx.grad(loss(theirs), argnums=(0, 1, 2))(q, k, v)
    for mine, reference in zip(got, expected, strict=True):
        assert mx.abs(reference).max().item() > 0
        assert mx.array_equal(mine, reference)


def test_value_and_grad_and_vjp() -> None:
    q, k, v = draw(Shape())
    value, grad = mx.value_and_grad(lambda q: (ours(q, k, v) ** 2).sum())(q)
    expected, expected_grad = mx.value_and_grad(lambda q: (theirs(q, k, v) ** 2).sum())(q)
    assert abs(value.item() - expected.item()) < 1e-2
    close(grad, expected_grad, atol=1e-4)
    (out,), (dv,) = mx.vjp(lambda v: ours(q, k, v), [v], [mx.ones((1, 2, 33, 64))])
    (out2,), (dv2,) = mx.vjp(lambda v: theirs(q, k, v), [v], [mx.ones((1, 2, 33, 64))])
    close(out, out2)
    close(dv, dv2)


def test_gradients_reach_mask_and_sinks() -> None:
    q, k, v = draw(Shape())
    mask, sinks = mx.random.normal((33, 47)), mx.array([0.1, 0.2])
    for attend in (ours, theirs):
        grads = mx.grad(lambda m, s, f=attend: (f(q, k, v, mask=m, sinks=s) ** 2).sum(), (0, 1))(
            mask, sinks
        )
        assert all(mx.abs(g).max().item() > 0 for g in grads)


def test_forward_mode_and_second_order() -> None:
    q, k, v = draw(Shape(sq=5, skv=7))
    _, (out,) = mx.jvp(lambda q: ours(q, k, v), [q], [mx.ones_like(q)])
    _, (expected,) = mx.jvp(lambda q: theirs(q, k, v), [q], [mx.ones_like(q)])
    close(out, expected)

    def second(attend: Any) -> mx.array:
        inner = mx.grad(lambda q: (attend(q, k, v) ** 2).sum())
        return mx.grad(lambda q: (inner(q) ** 2).sum())(q)

    close(second(ours), second(theirs), atol=1e-4)


def test_compile() -> None:
    q, k, v = draw(Shape())
    compiled = mx.compile(lambda q, k, v: ours(q * 2, k, v) + 1)
    for factor in (1.0, 3.0):  # the second call replays the graph with other inputs
        close(compiled(q * factor, k, v), theirs(q * factor * 2, k, v) + 1)
    mask = mx.arange(47) < 30
    close(mx.compile(lambda m: ours(q, k, v, mask=m))(mask), theirs(q, k, v, mask=mask))
    gradient = mx.compile(mx.grad(lambda q: (ours(q, k, v) ** 2).sum()))
    close(gradient(q), mx.grad(lambda q: (theirs(q, k, v) ** 2).sum())(q), atol=1e-4)


def test_vmap() -> None:
    q, k, v = draw(Shape(b=3))
    stacked = mx.stack([q, q * 2])
    close(mx.vmap(lambda x: ours(x, k, v))(stacked), mx.vmap(lambda x: theirs(x, k, v))(stacked))
    got = mx.vmap(ours, in_axes=(None, 0, 0))(q, mx.stack([k, k]), mx.stack([v, 2 * v]))
    close(got[1], theirs(q, k, 2 * v))
    close(
        mx.vmap(mx.grad(lambda x: ours(x, k, v).sum()))(stacked),
        mx.vmap(mx.grad(lambda x: theirs(x, k, v).sum()))(stacked),
    )


def test_checkpoint() -> None:
    q, k, v = draw(Shape())
    got = mx.grad(mx.checkpoint(lambda q: (ours(q, k, v) ** 2).sum()))(q)
    close(got, mx.grad(lambda q: (theirs(q, k, v) ** 2).sum())(q), atol=1e-4)


def test_a_later_write_to_an_input_does_not_reach_the_result() -> None:
    q, k, v = draw(Shape())
    out = ours(q, k, v)
    expected = np.array(out)
    v[...] = 0
    q += 1
    mx.eval(q, v)
    np.testing.assert_array_equal(np.array(out), expected)


def test_many_threads() -> None:
    calls = [draw(Shape(sq=40 + i, skv=50 + i), seed=i) for i in range(16)]
    expected = [theirs(*call) for call in calls]
    mx.eval(expected, calls)
    barrier = threading.Barrier(8)

    def work(i: int) -> np.ndarray:
        if i < 8:
            barrier.wait()  # the first calls meet on a cold library
        for _ in range(5):
            out = ours(*calls[i])
        return as_numpy(out)

    with ThreadPoolExecutor(8) as pool:
        for out, want in zip(pool.map(work, range(16)), expected, strict=True):
            np.testing.assert_allclose(out, as_numpy(want), atol=1e-5)


def test_streams() -> None:
    q, k, v = draw(Shape())
    expected = theirs(q, k, v)
    stream = mx.new_stream(mx.cpu)
    close(ours(q, k, v, stream=stream), expected)
    with mx.stream(stream):
        close(ours(q + 0, k, v), expected)
    doubled = mx.add(q, q, stream=stream)  # pending on another stream
    close(ours(doubled, k, v), theirs(2 * q, k, v))


def test_lazy_arrays_of_another_thread() -> None:
    q, k, v = draw(Shape())
    mx.eval(q, k, v)
    lazy = q * 2  # can be evaluated only where it was made
    box: list[Any] = []

    def work() -> None:
        try:
            box.append(ours(lazy, k, v))
        except Exception as error:  # noqa: BLE001 - any error at all fails the test
            box.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(box[0], mx.array), box[0]


@pytest.mark.not_on_cuda("no array can be made in a forked child")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_fork() -> None:
    # MLX 0.32's own default stream never answers in a forked child; ours must not depend on it.
    q, k, v = draw(Shape(sq=200, skv=200))
    expected = np.array(theirs(q, k, v))
    np.testing.assert_allclose(np.array(ours(q, k, v)), expected, atol=1e-5)  # threads are up
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        wrong = np.abs(np.array(memoryview(ours(q, k, v))) - expected).max() > 1e-5
        if os.fork() == 0:  # the stream that the child made is dead in this one
            signal.alarm(10)
            wrong = np.abs(np.array(memoryview(ours(q, k, v))) - expected).max() > 1e-5
            os._exit(int(wrong))
        os._exit(int(wrong or os.wait()[1] != 0))
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_allclose(np.array(ours(q, k, v)), expected, atol=1e-5)


@pytest.mark.not_on_cuda("no array can be made in a forked child")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["chosen", "remembered", "device", "padding"])
def test_after_fork_mlx_s_kernel_answers_too(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result was left on a stream that never answers in the child."""
    monkeypatch.setenv("QWEN_MFA_BACKEND", "mlx")
    session.start()
    rows = 2100 if how == "padding" else 200
    q, k, v = draw(Shape(sq=rows, skv=rows))
    options: dict[str, Any] = {"mask": None}
    if how == "padding":
        options["mask"] = mx.arange(rows)[None, None, None] < rows - 7
    if how == "device":
        options["stream"] = mx.cpu
    if how == "remembered":
        ours(q, k, v)
    expected = np.array(theirs(q, k, v, mask=options["mask"]))
    mx.eval(q, k, v)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            wrong = np.abs(np.array(memoryview(ours(q, k, v, **options))) - expected).max() > 1e-5
            os._exit(int(wrong))
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
