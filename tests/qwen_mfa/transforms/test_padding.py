"""Padding removal: which masks qualify, that the result is MLX's, gradients, graphs, the switch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.kernels.base import Call
from qwen_mfa.selection import session
from qwen_mfa.transforms import padding
from qwen_mfa.transforms.padding import Part, visible_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT, IMAGE, HEADS, DIM = 20, 76, 2, 16
KEYS = TEXT + IMAGE
SCALE = DIM**-0.5
# The largest difference from MLX's masked result in float32 of the same inputs, relative to its
# largest value: another order of summation in float32; for the 16-bit dtypes half a unit in the
# last place of the result (2^-9, 2^-12), twice that to spare.
BOUNDS = {mx.float32: 2e-6, mx.float16: 2**-11, mx.bfloat16: 2**-8}
HIDDEN = {mx.float32: -1e9, mx.float16: -65504.0, mx.bfloat16: -1e9}


@pytest.fixture(autouse=True)
def whatever_was_measured(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> None:
    """Small problems, too; whether it pays is the business of test_removal."""
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", "0")
    session.start()


@pytest.fixture
def seen() -> Iterator[list[telemetry.Event]]:
    log: list[telemetry.Event] = []
    stop = telemetry.subscribe(log.append)
    yield log
    stop()


def qkv(batch: int, dtype: mx.Dtype = mx.float32, queries: int = KEYS) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(1), 3)
    lengths = (queries, KEYS, KEYS)
    return [
        mx.random.normal((batch, HEADS, length, DIM), key=key).astype(dtype)
        for key, length in zip(keys, lengths, strict=True)
    ]


def text_padding(*lengths: int) -> mx.array:
    """``[batch, 1, 1, keys]``: rows with that many real text tokens, then the image."""
    position = mx.arange(KEYS)[None]
    mask = (position < mx.array(lengths)[:, None]) | (position >= TEXT)
    return mask[:, None, None, :]


def additive(mask: mx.array, dtype: mx.Dtype = mx.float32, low: float | None = None) -> mx.array:
    return mx.where(mask, 0.0, HIDDEN[dtype] if low is None else low).astype(dtype)


def parts_of(mask: mx.array, batch: int, queries: int = KEYS) -> tuple[Part, ...] | None:
    q, k, v = qkv(batch, queries=queries)
    return visible_parts(Call(q=q, k=k, v=v, scale=SCALE, mask=mask))


def difference(ours: mx.array, theirs: mx.array) -> float:
    wide = [x.astype(mx.float32) for x in (ours, theirs)]
    return float(mx.abs(wide[0] - wide[1]).max().item() / mx.abs(wide[1]).max().item())


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("lengths", [(7,), (7, 7), (7, 20, 1), (20, 20), (0, 5)], ids=str)
def test_result_is_that_of_the_mask(
    dtype: mx.Dtype, kind: str, lengths: tuple[int, ...], seen: list[telemetry.Event]
) -> None:
    q, k, v = qkv(len(lengths), dtype)
    mask = text_padding(*lengths)
    if kind == "additive":
        mask = additive(mask, dtype)
    ours = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    wide = [x.astype(mx.float32) for x in (q, k, v)]
    exact = mx.fast.scaled_dot_product_attention(*wide, scale=SCALE, mask=mask)
    # MLX's CPU kernel rounds the scores of 16-bit inputs too: what runs here may be that one.
    assert difference(ours, exact) <= max(BOUNDS[dtype], difference(theirs, exact))
    assert seen[0].kernel is None
    left = [e.problem.seq_kv for e in seen[1:] if e.problem is not None]
    expected = dict.fromkeys(lengths)
    assert left == [IMAGE + length for length in expected]
    assert all(e.problem is not None and e.problem.mask == "none" for e in seen[1:])


def test_parts() -> None:
    whole = ((0, KEYS),)
    assert parts_of(text_padding(20, 20), 2) == (Part(rows=(0, 2), runs=whole),)
    assert parts_of(text_padding(7), 3) == (Part(rows=(0, 3), runs=((0, 7), (20, KEYS))),)
    assert parts_of(text_padding(7, 7, 20), 3) == (
        Part(rows=(0, 2), runs=((0, 7), (20, KEYS))),
        Part(rows=(2, 3), runs=whole),
    )
    trailing = (mx.arange(KEYS) < 90)[None, None, None]
    assert parts_of(trailing, 1) == (Part(rows=(0, 1), runs=((0, 90),)),)
    assert parts_of(trailing[0, 0, 0], 1) == (Part(rows=(0, 1), runs=((0, 90),)),)


@pytest.mark.parametrize(
    ("dtype", "low"),
    [
        *((dtype, -mx.inf) for dtype in BOUNDS),
        (mx.float32, -3.4e38),
        (mx.float32, -60001.0),
        (mx.bfloat16, -60160.0),
        (mx.float16, -60032.0),
    ],
    ids=str,
)
def test_values_that_hide(dtype: mx.Dtype, low: float) -> None:
    mask = additive(text_padding(7), dtype, low)
    q, k, v = qkv(1, dtype)
    assert visible_parts(Call(q=q, k=k, v=v, scale=SCALE, mask=mask)) == (
        Part(rows=(0, 1), runs=((0, 7), (20, KEYS))),
    )


@pytest.mark.parametrize(
    ("dtype", "low"),
    [
        *((dtype, value) for dtype in BOUNDS for value in (-1e4, -0.5, 1.0, mx.nan, mx.inf)),
        (mx.float32, -59999.0),
    ],
    ids=str,
)
def test_values_that_are_biases(dtype: mx.Dtype, low: float) -> None:
    mask = additive(text_padding(7), dtype, low)
    q, k, v = qkv(1, dtype)
    assert visible_parts(Call(q=q, k=k, v=v, scale=SCALE, mask=mask)) is None


def test_negative_zero_is_visible() -> None:
    mask = mx.where(text_padding(20), -0.0, 1.0) * (mx.arange(KEYS) % 2 * 2 - 1)
    assert mx.all(mask == 0).item()
    assert parts_of(mask, 1) == (Part(rows=(0, 1), runs=((0, KEYS),)),)


@pytest.mark.parametrize(
    "mask",
    [
        mx.broadcast_to(text_padding(7), (1, 1, KEYS, KEYS)),
        mx.broadcast_to(text_padding(7), (1, HEADS, 1, KEYS)),
        mx.tril(mx.ones((KEYS, KEYS), dtype=mx.bool_)),
        mx.zeros((1, 1, 1, KEYS), dtype=mx.bool_),
        (mx.arange(KEYS) % 2 == 0)[None, None, None],
        mx.ones((1, 1, 1, 1), dtype=mx.bool_),
    ],
    ids=["per-query", "per-head", "causal", "all-hidden", "many-holes", "scalar"],
)
def test_masks_that_stay(mask: mx.array) -> None:
    assert parts_of(mask, 1) is None


def test_a_row_without_any_key_keeps_the_mask_of_all_rows() -> None:
    mask = mx.concatenate([text_padding(7), mx.zeros((1, 1, 1, KEYS), dtype=mx.bool_)])
    assert parts_of(mask, 2) is None


def test_few_queries_keep_the_mask() -> None:
    assert parts_of(text_padding(7), 1, queries=padding.MIN_QUERIES) is not None
    assert parts_of(text_padding(7), 1, queries=padding.MIN_QUERIES - 1) is None


def test_small_problems_keep_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = 4 * HEADS * DIM * KEYS * KEYS
    monkeypatch.setattr(padding, "MIN_FLOPS", flops)
    assert parts_of(text_padding(7), 1) is not None
    monkeypatch.setattr(padding, "MIN_FLOPS", flops + 1)
    assert parts_of(text_padding(7), 1) is None


def test_qwen_image_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tokens = 1024 + 100
    q = mx.zeros((1, 24, tokens, 128), dtype=mx.bfloat16)
    mask = (mx.arange(tokens) < 60) | (mx.arange(tokens) >= 100)
    assert visible_parts(Call(q=q, k=q, v=q, scale=SCALE, mask=mask)) is not None


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", "1")
    session.start()
    assert parts_of(text_padding(7), 1) is None


def test_a_mask_changed_in_place_is_looked_at_again() -> None:
    """Recognition goes by contents, so an array that is written to cannot give a stale answer."""
    mask = text_padding(7)
    assert parts_of(mask, 1) == (Part(rows=(0, 1), runs=((0, 7), (20, KEYS))),)
    mask[0, 0, 0, 7] = True
    assert parts_of(mask, 1) == (Part(rows=(0, 1), runs=((0, 8), (20, KEYS))),)


@pytest.mark.usefixtures("each_kernel")
def test_grouped_heads_sinks_and_fewer_queries() -> None:
    mx.random.seed(2)
    q = mx.random.normal((2, 4, 70, DIM))
    _, k, v = qkv(2)
    sinks = mx.random.normal((4,))
    mask = text_padding(3, 9)
    ours, theirs = (
        attention(q, k, v, scale=SCALE, mask=mask, sinks=sinks)
        for attention in (
            qwen_mfa.scaled_dot_product_attention,
            mx.fast.scaled_dot_product_attention,
        )
    )
    assert difference(ours, theirs) <= BOUNDS[mx.float32]


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_gradients_are_those_of_the_mask(kind: str) -> None:
    q, k, v = qkv(2)
    mask = text_padding(7, 12)
    if kind == "additive":
        mask = additive(mask)

    def gradients(attention: object) -> tuple[mx.array, ...]:
        def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return (attention(q, k, v, scale=SCALE, mask=mask) ** 2).sum()  # type: ignore[operator]

        return mx.grad(loss, argnums=(0, 1, 2))(q, k, v)

    ours = gradients(qwen_mfa.scaled_dot_product_attention)
    theirs = gradients(mx.fast.scaled_dot_product_attention)
    for a, b in zip(ours, theirs, strict=True):
        assert difference(a, b) <= 1e-5
    assert mx.all(ours[1][0, :, 7:TEXT] == 0).item()


@pytest.mark.usefixtures("each_kernel")
def test_a_trainable_mask_gets_its_gradient() -> None:
    """A visible key's bias is 0, yet its derivative is not: dropping the mask would lose it."""
    q, k, v = qkv(1)
    mask = additive(text_padding(7))

    def loss(attention: object, mask: mx.array) -> mx.array:
        return (attention(q, k, v, scale=SCALE, mask=mask) ** 2).sum()  # type: ignore[operator]

    ours, theirs = (
        mx.grad(loss, argnums=1)(attention, mask)
        for attention in (
            qwen_mfa.scaled_dot_product_attention,
            mx.fast.scaled_dot_product_attention,
        )
    )
    assert mx.abs(theirs).max().item() > 1e-3
    assert difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_traced_masks_stay_in_the_graph(transform: str, seen: list[telemetry.Event]) -> None:
    q, k, v = qkv(2)
    mask = text_padding(7, 12)

    def run(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
        return qwen_mfa.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask)

    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask)
    if transform == "compile":
        ours = mx.compile(run)(q, k, v, mask)
    else:
        ours = mx.vmap(run)(*(x[:, None] for x in (q, k, v, mask)))[:, 0]
    assert difference(ours, theirs) <= BOUNDS[mx.float32]
    assert {event.kernel for event in seen} == {"mlx"}


def test_masks_that_mlx_rejects_are_rejected() -> None:
    q, k, v = qkv(1, mx.bfloat16)
    with pytest.raises(ValueError, match="Mask type must promote"):
        qwen_mfa.scaled_dot_product_attention(
            q, k, v, scale=SCALE, mask=additive(text_padding(7), mx.float32)
        )


def test_events_stop_when_unsubscribed() -> None:
    log: list[telemetry.Event] = []
    stop = telemetry.subscribe(log.append)
    q, k, v = qkv(1)
    qwen_mfa.scaled_dot_product_attention(q, k, v, scale=SCALE)
    stop()
    qwen_mfa.scaled_dot_product_attention(q, k, v, scale=SCALE)
    assert len(log) == 1
