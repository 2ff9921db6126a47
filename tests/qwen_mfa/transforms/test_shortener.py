"""Masks that hide the same keys at every call: what is asked once only, and what every time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.kernels import mlx
from qwen_mfa.selection import choose, removal, session
from qwen_mfa.transforms import masks, padding
from tests.qwen_mfa.transforms.test_padding import (
    BOUNDS,
    SCALE,
    TEXT,
    additive,
    difference,
    qkv,
    text_padding,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

attention = qwen_mfa.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def by_mlx(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> Iterator[None]:
    """Leave keys out without measuring; MLX computes what is left."""
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", "0")
    session.start()
    telemetry.start()
    with qwen_mfa.use("mlx"):
        yield


def steady(mask: mx.array, **more: Any) -> list[mx.array]:
    """Return q, k and v with which calls with ``mask`` are in their steady state."""
    q, k, v = qkv(1)
    attention(q, k, v, scale=SCALE, mask=mask, **more)
    assert len(session.current.shorteners) == 1
    return [q, k, v]


@pytest.fixture(params=["bool", "additive"])
def mask(request: pytest.FixtureRequest) -> mx.array:
    visible = text_padding(7)
    found = visible if request.param == "bool" else additive(visible)
    mx.eval(found)
    return found


def is_masked(out: mx.array, q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> bool:
    theirs = mlx.attention(q, k, v, scale=SCALE, mask=mask)
    return difference(out, theirs) <= BOUNDS[mx.float32]


def test_nothing_is_asked_again(mask: mx.array, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = steady(mask)
    for module, name in ((choose, "choose"), (removal, "decide"), (padding, "visible_parts")):
        monkeypatch.delattr(module, name)
    # Where reading may wait, another array's contents are not looked at.
    for other in (mask, mask if removal.looking_may_wait() else mx.array(mask)):
        assert is_masked(attention(q, k, v, scale=SCALE, mask=other), q, k, v, mask)
    stats = qwen_mfa.stats()
    assert stats.calls == {"mlx": 3}
    assert sum(n for (kernel, _), n in stats.reasons.items() if kernel is None) == 3


def test_other_contents_are_seen(mask: mx.array) -> None:
    q, k, v = steady(mask)
    mask[..., 7:TEXT] = True if mask.dtype == mx.bool_ else 0.0
    mask[..., 30:] = False if mask.dtype == mx.bool_ else -1e9
    assert is_masked(attention(q, k, v, scale=SCALE, mask=mask), q, k, v, mask)


def test_a_bias_is_no_padding() -> None:
    mask = additive(text_padding(7))
    q, k, v = steady(mask)
    mask[..., 3] = -1.0
    assert is_masked(attention(q, k, v, scale=SCALE, mask=mask), q, k, v, mask)


def test_what_was_written_to_the_mask_during_the_call(mask: mx.array) -> None:
    """The keys that the call before saw are not taken for those of what the mask holds since."""

    def write(_: telemetry.Event) -> None:
        mask[..., 7:30] = True if mask.dtype == mx.bool_ else 0.0
        mx.eval(mask)

    q, k, v = qkv(1)
    stop = telemetry.subscribe(write)
    attention(q, k, v, scale=SCALE, mask=mask)
    stop()
    for _ in range(2):
        assert is_masked(attention(q, k, v, scale=SCALE, mask=mask), q, k, v, mask)


@pytest.mark.parametrize("amiss", ["scale", "v"])
def test_errors_are_those_of_mlx(mask: mx.array, amiss: str) -> None:
    q, k, v = steady(mask)
    given: dict[str, Any] = {"scale": SCALE, "v": v, amiss: None if amiss == "v" else mx.ones(2)}
    with pytest.raises(TypeError, match="incompatible function arguments"):
        attention(q, k, **given, mask=mask)


def test_another_scale(mask: mx.array) -> None:
    q, k, v = steady(mask)
    ours = attention(q, k, v, scale=2 * SCALE, mask=mask)
    theirs = mlx.attention(q, k, v, scale=2 * SCALE, mask=mask)
    assert difference(ours, theirs) <= BOUNDS[mx.float32]


def test_values_of_another_kind_are_judged_by_mlx(mask: mx.array) -> None:
    q, k, v = steady(mask)
    with pytest.raises(ValueError, match=r"shape|length|dim"):
        attention(q, k, v[:, :, :-1], scale=SCALE, mask=mask)
    wide = mx.concatenate([v, v], axis=-1)
    assert is_masked(attention(q, k, wide, scale=SCALE, mask=mask), q, k, wide, mask)


def test_kept_masks_stay(mask: mx.array) -> None:
    q, k, v = steady(mask)
    with padding.kept():
        out = attention(q, k, v, scale=SCALE, mask=mask)
    assert mx.array_equal(out, mlx.attention(q, k, v, scale=SCALE, mask=mask))


def test_subscribers_hear_of_each_call(mask: mx.array) -> None:
    q, k, v = steady(mask)
    heard: list[telemetry.Event] = []
    stop = telemetry.subscribe(heard.append)
    attention(q, k, v, scale=SCALE, mask=mask)
    stop()
    assert [event.kernel for event in heard] == [None, "mlx"]


def test_a_trainable_mask_gets_its_gradient() -> None:
    mask = additive(text_padding(7))
    q, k, v = steady(mask)

    def loss(function: Any, mask: mx.array) -> mx.array:
        return (function(q, k, v, scale=SCALE, mask=mask) ** 2).sum()

    ours, theirs = (mx.grad(loss, argnums=1)(f, mask) for f in (attention, mlx.attention))
    assert mx.abs(theirs).max().item() > 1e-3
    assert difference(ours, theirs) <= 1e-5


def test_graphs_keep_their_mask(mask: mx.array) -> None:
    q, k, v = steady(mask)
    run = mx.compile(lambda *xs: attention(*xs[:3], scale=SCALE, mask=xs[3]))
    assert is_masked(run(q, k, v, mask), q, k, v, mask)


@pytest.mark.parametrize("why", ["sinks", "a stream", "rows of different lengths"])
def test_calls_that_are_asked_about_each_time(why: str) -> None:
    batch = 2 if why.startswith("rows") else 1
    more: dict[str, Any] = {}
    if why == "sinks":
        more["sinks"] = mx.zeros(2)
    if why == "a stream":
        more["stream"] = mx.default_device()
    mask = text_padding(7, 9) if batch == 2 else text_padding(7)
    q, k, v = qkv(batch)
    ours = attention(q, k, v, scale=SCALE, mask=mask, **more)
    assert not session.current.shorteners
    assert difference(ours, mlx.attention(q, k, v, scale=SCALE, mask=mask, **more)) <= 2e-6


def test_a_new_mask_is_not_read_where_reading_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new one costs a wait for the device: `masks.MAX_NEW` of them, as ever."""
    monkeypatch.setattr(removal, "looking_may_wait", lambda: True)
    read: list[int] = []
    contents = padding.contents

    def counted(mask: mx.array) -> bytes | None:
        read.append(1)
        return contents(mask)

    monkeypatch.setattr(padding, "contents", counted)
    q, k, v = steady(text_padding(7))
    read.clear()
    kept = []
    for _ in range(2 * masks.MAX_NEW):
        kept.append(text_padding(7))  # alive, so that no address comes twice
        attention(q, k, v, scale=SCALE, mask=kept[-1])
    assert len(read) < 2 * masks.MAX_NEW
    read.clear()
    attention(q, k, v, scale=SCALE, mask=kept[-1])
    assert read
