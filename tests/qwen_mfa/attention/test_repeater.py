"""Calls that a kernel computes again and again: what is prepared once, and what is never taken."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.kernels import cpu, mlx
from qwen_mfa.kernels.base import Call
from qwen_mfa.selection import choose, session
from tests.qwen_mfa.attention.problems import assert_exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.cpu

SHAPE, SCALE = (1, 4, 20, 32), 32**-0.5
attention = qwen_mfa.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def by_the_engine(fresh_dispatch: None) -> Iterator[None]:
    telemetry.start()
    with qwen_mfa.use("cpu"):
        yield


def drawn(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 1) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), 3)
    found = [mx.random.normal(shape or SHAPE, key=key).astype(dtype) for key in keys]
    mx.eval(found)
    return found


def steady(*arrays: mx.array, mask: str | None = None) -> Call:
    """Return a call whose kind is prepared."""
    q, k, v = arrays or drawn()
    attention(q, k, v, scale=SCALE, mask=mask)
    assert len(session.current.repeaters) == 1
    return Call(q=q, k=k, v=v, scale=SCALE, mask=mask)


def check(call: Call) -> None:
    out = attention(call.q, call.k, call.v, scale=call.scale, mask=call.mask)
    assert_exact(out, call)


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_nothing_is_asked_again(
    dtype: mx.Dtype, mask: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = steady(*drawn(dtype=dtype), mask=mask)
    first = cpu.run(call)
    for module, name in ((choose, "choose"), (cpu, "run"), (cpu, "_arguments")):
        monkeypatch.delattr(module, name)
    again = attention(call.q, call.k, call.v, scale=SCALE, mask=mask)
    assert mx.array_equal(first, again)
    q, k, v = drawn(dtype=dtype, seed=2)
    check(replace(call, q=q, k=k, v=v))
    assert qwen_mfa.stats().calls == {"cpu": 3}


LAYOUTS: dict[str, Callable[[mx.array], mx.array]] = {
    "plain": lambda x: x,
    "heads interleaved": lambda x: mx.contiguous(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
    "a slice": lambda x: mx.concatenate([x, x], axis=3)[..., 1:33],
    "every other row": lambda x: mx.concatenate([x, x], axis=2)[:, :, ::2],
    "backwards": lambda x: x[:, :, ::-1],
    "one row for all": lambda x: mx.broadcast_to(x[:, :, :1], x.shape),
    "columns first": lambda x: mx.contiguous(x.swapaxes(2, 3)).swapaxes(2, 3),
}


@pytest.mark.parametrize("later", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts(first: str, later: str) -> None:
    """Whatever was prepared for, arrays that lie otherwise are read as they lie."""
    for which in range(3):
        session.start()
        for name in (first, later):
            arrays = drawn(seed=which)
            arrays[which] = LAYOUTS[name](arrays[which])
            mx.eval(arrays)
            for _ in range(2):
                check(Call(q=arrays[0], k=arrays[1], v=arrays[2], scale=SCALE))


def test_what_is_another_call_after_all() -> None:
    call = steady()
    check(replace(call, scale=3 * SCALE))
    check(replace(call, v=mx.concatenate([call.v, call.v], axis=-1)))
    half = call.v.astype(mx.float16)
    theirs = mlx.attention(call.q, call.k, half, scale=SCALE)
    ours = attention(call.q, call.k, half, scale=SCALE)
    assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape|length|dim"):
        attention(call.q, call.k, call.v[:, :, :-1], scale=SCALE)


@pytest.mark.parametrize("scale", [np.float32(1), mx.array(1.0), Fraction(1), Decimal(1)], ids=repr)
def test_a_scale_of_another_type_is_judged_by_mlx(scale: Any) -> None:
    call = replace(steady(), scale=1.0)
    check(call)
    out = attention(call.q, call.k, call.v, scale=scale)
    assert mx.array_equal(out, mlx.run(call))
    assert qwen_mfa.stats().calls == {"cpu": 2, "mlx": 1}


class Like:
    """As an array, where only this is looked at."""

    def __init__(self, array: mx.array) -> None:
        self.shape, self.dtype = array.shape, array.dtype


@pytest.mark.parametrize("amiss", ["complex", "arrays", "nothing", "q", "k", "v"])
def test_errors_are_those_of_mlx(amiss: str) -> None:
    call = replace(steady(), scale=1.0)
    check(call)
    given: dict[str, Any] = {"q": call.q, "k": call.k, "v": call.v, "scale": 1.0}
    changed = {
        "complex": {"scale": 1 + 0j},
        "arrays": {"scale": mx.ones(2)},
        "nothing": {"v": None},
        **{name: {name: Like(given[name])} for name in "qkv"},
    }
    given |= changed[amiss]
    with pytest.raises(TypeError, match="incompatible function arguments"):
        attention(**given)


def test_too_large_an_int_is_no_failure_of_the_kernel() -> None:
    call = steady()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        attention(call.q, call.k, call.v, scale=10**400)
    assert not session.current.quarantined


def test_what_is_never_prepared() -> None:
    q, k, v = drawn()
    mask = mx.zeros((20, 20))
    calls: list[dict[str, Any]] = [{"mask": mask}, {"sinks": mx.zeros(4)}, {"stream": mx.cpu}]
    for more in calls:
        attention(q, k, v, scale=SCALE, **more)
    attention(q, k.astype(mx.float16), v, scale=SCALE)
    assert not session.current.repeaters


def test_what_is_amiss_goes_the_general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    call = steady()
    monkeypatch.setattr(cpu.Repeated, "run", lambda *_: None)
    check(call)
    assert qwen_mfa.stats().calls == {"cpu": 2}


def test_an_engine_that_fails_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is no result: the general way sees to the call, and to the kernel."""
    made: list[cpu.Repeated] = []
    real = cpu.repeated

    def spied(call: Call) -> cpu.Repeated | None:
        found = real(call)
        assert found is not None
        made.append(found)
        return found

    monkeypatch.setattr(cpu, "repeated", spied)
    call = steady()
    codes: list[int] = []
    monkeypatch.setattr(made[0], "_attention", lambda *_: codes.append(3) or 3)
    check(call)
    assert codes


def test_gradients() -> None:
    call = steady()

    def loss(function: Any, *arrays: mx.array) -> mx.array:
        return (function(*arrays, scale=SCALE) ** 2).sum()

    arrays = (call.q, call.k, call.v)
    ours, theirs = (
        mx.grad(loss, argnums=(1, 2, 3))(function, *arrays)
        for function in (attention, mlx.attention)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert mx.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_graphs(transform: str) -> None:
    call = steady()

    def run(*xs: mx.array) -> mx.array:
        return attention(*xs, scale=SCALE)

    arrays = (call.q, call.k, call.v)
    if transform == "compile":
        out = mx.compile(run)(*arrays)
    else:
        out = mx.vmap(run)(*(x[None] for x in arrays))[0]
    assert_exact(out, call)


def test_lazy_inputs() -> None:
    call = steady()
    out = attention(call.q * 1, call.k + 0, call.v * 1, scale=SCALE)
    assert_exact(out, call)


def test_lazy_inputs_of_another_thread() -> None:
    call = steady()
    made: list[mx.array] = []

    def make() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            made.append(call.q * 1)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    out = attention(made[0], call.k, call.v, scale=SCALE)  # MLX's own operation
    with pytest.raises(RuntimeError, match="no Stream"):
        mx.eval(out)


def test_many_threads() -> None:
    steady()

    def work(seed: int) -> None:
        q, k, v = drawn(seed=seed)
        for _ in range(20):
            check(Call(q=q, k=k, v=v, scale=SCALE))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_no_array_is_kept_alive() -> None:
    steady(*drawn(1, 4, 2000, 32))
    gc.collect()
    before = mx.get_active_memory()
    session.start()
    gc.collect()
    assert before - mx.get_active_memory() < 4 * 2000 * 32 * 4


def test_subscribers_hear_of_each_call() -> None:
    call = steady()
    heard: list[telemetry.Event] = []
    stop = telemetry.subscribe(heard.append)
    check(call)
    stop()
    assert [event.kernel for event in heard] == ["cpu"]
    assert heard[0].seconds is not None


def test_preparing_that_fails_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Call) -> None:
        raise MemoryError

    monkeypatch.setattr(cpu, "repeated", fail)
    q, k, v = drawn()
    check(Call(q=q, k=k, v=v, scale=SCALE))
    assert not session.current.repeaters


def test_an_array_that_changes_while_it_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn()
    real = cpu._arguments

    def changing(call: Call) -> Any:
        found = real(call)
        if call.q is q:
            q[:] = LAYOUTS["columns first"](q)
        return found

    call = Call(q=q, k=k, v=v, scale=SCALE)
    monkeypatch.setattr(cpu, "_arguments", changing)
    before = cpu._layout(q)
    made = cpu.repeated(call)
    assert made is None or cpu._layout(q) == before


def test_a_scale_of_0_is_not_prepared() -> None:
    """0.0 and -0.0 are equal, and have gradients of different signs."""
    q, k, v = drawn()
    attention(q, k, v, scale=0.0)
    assert not session.current.repeaters
