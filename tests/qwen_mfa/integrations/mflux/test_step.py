"""The parts of a step around attention, each on its own and together, with real mflux modules.

On the CPU fused code rounds as MLX's own does, so that float32 results are held to 1e-5 of the
largest value over a whole run, and to every bit where a part claims that.
"""

from __future__ import annotations

import argparse
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mflux.models.qwen.model.qwen_transformer.qwen_transformer_block import QwenTransformerBlock
from mflux.models.qwen.variants.txt2img.qwen_image import QwenImage
from mlx import nn
from mlx.utils import tree_flatten

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.cli import run
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import integration, modulation, records, skeleton
from qwen_mfa.integrations.mflux import trial as trial_module
from qwen_mfa.integrations.mflux.options import SWITCHES
from qwen_mfa.integrations.mflux.records import Record
from qwen_mfa.integrations.usage import Usage
from qwen_mfa.selection import decisions
from tests.qwen_mfa.integrations.mflux.conftest import (
    HEADS,
    LAYERS,
    STEPS,
    TEXT_DIM,
    Comparison,
    config,
    draw,
    transformer,
)
from tests.qwen_mfa.integrations.mflux.test_qwen_image import (
    CHANNELS,
    DIM,
    FLOAT32,
    TEXT,
    TOKENS,
    pipeline,
    predict,
    rope,
    text_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cpu

NOTHING = {
    "fused_blocks": "off",
    "early_start": "off",
    "skip_negative": False,
    "share_modulation": False,
    "share_mask": False,
}


@pytest.fixture(autouse=True)
def from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test inherit what another found out."""
    telemetry.start()
    monkeypatch.setattr(integration._host, "_steps", {})


def parts(part: str) -> dict[str, int]:
    return {name: n for (of, name), n in qwen_mfa.stats().parts.items() if of == part}


def relative(found: mx.array, expected: mx.array) -> float:
    wide = expected.astype(mx.float32)
    return float((mx.abs(found.astype(mx.float32) - wide).max() / mx.abs(wide).max()).item())


# Fused blocks


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_a_whole_run_with_fused_blocks(generate: Callable[..., mx.array], guidance: float) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING):
        plain = generate(image, guidance=guidance)
    with mflux.enabled(**{**NOTHING, "fused_blocks": "on"}) as _:
        fused = generate(image, guidance=guidance)
        assert all("fused (asked for)" in text for text in mflux.status().blocks)
    assert relative(fused, plain) <= FLOAT32
    assert parts("fused blocks")["fused"] == 2 * STEPS * LAYERS - 1


@pytest.mark.parametrize("lengths", [(20,), (20, 20), (20, 7)], ids=str)
def test_masks_and_batches(compare: Callable[..., Comparison], lengths: tuple[int, ...]) -> None:
    model = transformer()
    latents = draw(6, len(lengths), TOKENS, CHANNELS)
    found = compare(
        lambda: predict(model, latents, text_mask(*lengths)), fused_blocks="on", native=True
    )
    assert found.difference <= FLOAT32
    assert parts("fused blocks")["fused"] == LAYERS - 1
    assert bool(found.usage.padding_removed) == (len(set(lengths)) > 1)


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["edit", "edit-2511"])
def test_reference_picture_tokens(compare: Callable[..., Comparison], zero_cond_t: bool) -> None:
    model = transformer(zero_cond_t=zero_cond_t)
    both = draw(7, 1, TOKENS + 24, CHANNELS)
    grid = {"cond_image_grid": (1, 4, 6)}
    found = compare(lambda: predict(model, both, text_mask(20), **grid), fused_blocks="on")
    assert found.difference <= FLOAT32
    assert parts("fused blocks")["fused"] == LAYERS - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_after_enabling(bits: int) -> None:
    """The structure is another one then: nothing of the first one's graphs is used."""
    model = transformer(mx.bfloat16)
    latents = draw(6, 1, TOKENS, CHANNELS)
    with mflux.enabled(fused_blocks="on"):
        mx.eval(predict(model, latents, text_mask(20)))
        nn.quantize(
            model,
            bits=bits,
            class_predicate=lambda _, m: isinstance(m, nn.Linear) and m.weight.shape[-1] % 64 == 0,
        )
        fused = predict(model, latents, text_mask(20))
        mx.eval(fused)
        assert len(mflux.status().blocks) == 2
    plain = predict(model, latents, text_mask(20))
    assert type(model.transformer_blocks[0].attn.to_q) is nn.QuantizedLinear
    assert relative(fused, plain) <= FLOAT32


def test_adapters_with_scales_of_their_own() -> None:
    """Their scale is a Python number: blocks that differ in it share no graph."""
    model = transformer()
    for number, block in enumerate(model.transformer_blocks):
        adapter = LoRALinear.from_linear(block.attn.to_q, r=4, scale=0.5 + number % 2)
        adapter.lora_B = draw(40 + number, 4, DIM) * 0.1
        block.attn.to_q = adapter
    latents = draw(6, 1, TOKENS, CHANNELS)
    plain = predict(model, latents, text_mask(20))
    with mflux.enabled(fused_blocks="on"):
        fused = predict(model, latents, text_mask(20))
        again = predict(model, latents, text_mask(20))
        mx.eval(fused, again)
        assert len(mflux.status().blocks) == 2
    assert relative(fused, plain) <= FLOAT32
    assert relative(again, plain) <= FLOAT32


def test_weights_replaced_while_on() -> None:
    model = transformer()
    latents = draw(6, 1, TOKENS, CHANNELS)
    with mflux.enabled(fused_blocks="on"):
        mx.eval(predict(model, latents, text_mask(20)))
        block = model.transformer_blocks[1]
        block.attn.to_q.weight = block.attn.to_q.weight * 3
        block.img_mod_linear.weight = block.img_mod_linear.weight * 2
        fused = predict(model, latents, text_mask(20))
        mx.eval(fused)
    assert relative(fused, predict(model, latents, text_mask(20))) <= FLOAT32


def test_bfloat16_is_held_to_a_float32_run() -> None:
    model = transformer(mx.bfloat16)
    latents = draw(6, 1, TOKENS, CHANNELS, dtype=mx.bfloat16)
    with mflux.enabled(fused_blocks="on"):
        mx.eval(predict(model, latents, text_mask(20)))
        step = mflux.step()
        assert step is not None
        assert step.blocks is not None
        (found,) = step.blocks.trials()
    assert 0 < found.error <= found.allowed < 0.05


def test_what_bfloat16_would_take_is_measured_on_a_block() -> None:
    """Where weights are bfloat16 and latents float32, as in mflux; nowhere else."""
    for dtype, latents, measured in (
        (mx.bfloat16, mx.float32, True),
        (mx.bfloat16, mx.bfloat16, False),
        (mx.float32, mx.float32, False),
    ):
        integration._host._steps.clear()
        with mflux.enabled():
            model = transformer(dtype)
            mx.eval(predict(model, draw(6, 1, TOKENS, CHANNELS, dtype=latents), text_mask(20)))
            gain = mflux.status().bfloat16
        assert (gain is not None and gain > 0) == measured


@pytest.mark.parametrize("bits", [8, 4])
def test_the_reference_of_quantised_blocks_has_plain_weights(bits: int) -> None:
    """MLX compiles quantised products for each dtype: none is compiled for the reference alone."""
    block = QwenTransformerBlock(dim=DIM, num_heads=HEADS, head_dim=128)
    block.set_dtype(mx.bfloat16)
    nn.quantize(block, bits=bits)
    block.attn.to_q = LoRALinear.from_linear(block.attn.to_q, r=4, scale=0.5)
    wide = skeleton.copy(block)
    skeleton.fill(wide, block, iter([trial_module._widened(x) for x in skeleton.read(block)[0]]))
    x = draw(2, 1, TOKENS, DIM)
    expected = [wide.img_ff(x), wide.attn.to_q(x), wide.attn.attn_to_out[0](x)]
    trial_module._dequantise(wide)
    assert not any(x.dtype == mx.uint32 for x in skeleton.read(wide)[0])
    assert any(x.dtype == mx.uint32 for x in skeleton.read(block)[0]), "the host's was changed"
    found = [wide.img_ff(x), wide.attn.to_q(x), wide.attn.attn_to_out[0](x)]
    assert max(map(relative, found, expected)) <= FLOAT32


def test_advice_alone_compiles_no_quantised_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each precision's take many seconds; a picture that does not pay for them waits."""
    monkeypatch.setattr(Record, "pays", lambda *_: False)
    model = transformer(mx.bfloat16)
    nn.quantize(model.transformer_blocks[0], bits=8)
    model.transformer_blocks = model.transformer_blocks[:1]
    with mflux.enabled(**NOTHING | {"fused_blocks": "auto"}):
        mx.eval(predict(model, draw(6, 1, TOKENS, CHANNELS), text_mask(20)))
        assert "have not earned yet" in mflux.status().blocks[0]
        assert mflux.status().bfloat16 is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_a_wrong_cut_is_found_out(monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype) -> None:
    """A seeded fault in what the second half gets from attention."""
    from qwen_mfa.integrations.mflux import cut

    original = cut.scaled_dot_product_attention

    def wrong(*args: Any, **options: Any) -> mx.array:
        return original(*args, **options) * 3

    model = transformer(dtype)
    latents = draw(6, 1, TOKENS, CHANNELS, dtype=dtype)
    plain = predict(model, latents, text_mask(20))
    monkeypatch.setattr(cut, "scaled_dot_product_attention", wrong)
    # Of its own, so that nothing is on record.
    with mflux.enabled(("qwen",), fused_blocks="on", skip_negative=False):
        kept = predict(model, latents, text_mask(20))
        mx.eval(kept)
        (text,) = mflux.status().blocks
    assert "as mflux runs them" in text
    assert "is allowed" in text
    assert relative(kept, plain) <= (FLOAT32 if dtype == mx.float32 else 0.02)


def test_what_cannot_be_cut_runs_as_it_is() -> None:
    """Attention twice, a look at a value, a use of the block's number: each is told."""
    from qwen_mfa.integrations.mflux.blocks import Blocks

    call = QwenTransformerBlock.__call__

    def twice(block: Any, **arguments: Any) -> Any:
        text, image = call(block, **arguments)
        return call(block, **{**arguments, "hidden_states": image, "encoder_hidden_states": text})

    def looks(block: Any, **arguments: Any) -> Any:
        if arguments["hidden_states"].max().item() > 1e9:
            return None
        return call(block, **arguments)

    def counts(block: Any, **arguments: Any) -> Any:
        text, image = call(block, **arguments)
        return text, image * (1 + arguments["block_idx"])

    def never(block: Any, **arguments: Any) -> Any:
        return arguments["encoder_hidden_states"], arguments["hidden_states"]

    block = QwenTransformerBlock(dim=DIM, num_heads=HEADS, head_dim=128)
    arguments = {
        "hidden_states": draw(2, 1, TOKENS, DIM),
        "encoder_hidden_states": draw(3, 1, TEXT, DIM),
        "encoder_hidden_states_mask": None,
        "text_embeddings": draw(4, 1, DIM),
        "image_rotary_emb": rope(TOKENS, TEXT),
        "block_idx": 3,
    }
    before = dict(tree_flatten(block.parameters()))
    options = mflux.Options(models=("qwen",), fused_blocks="on")
    with mflux.enabled(fused_blocks="off"):
        for host, words in (
            (twice, "attention"),
            (looks, "eval"),
            (counts, "Opaque"),
            (never, "never calls attention"),
        ):
            blocks = Blocks(host, options)
            found = blocks.run(block, dict(arguments))
            again = blocks.run(block, dict(arguments))
            expected = host(block, **arguments)
            for results in (found, again):
                assert all(mx.array_equal(x, y) for x, y in zip(results, expected, strict=True))
            (trial,) = blocks.trials()
            assert not trial.fused
            assert words in trial.reason, trial.reason
    after = dict(tree_flatten(block.parameters()))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before), "the host's module was changed"


def test_without_a_compiler_the_block_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLX raises when it cannot compile comes at evaluation, and must not reach the user."""
    from qwen_mfa.integrations.mflux.cut import Halves

    def fails(*_: Any) -> Any:
        msg = "[Compile::eval_cpu] Failed to compile function"
        raise RuntimeError(msg)

    model = transformer()
    latents = draw(6, 1, TOKENS, CHANNELS)
    plain = predict(model, latents, text_mask(20))
    monkeypatch.setattr(Halves, "__call__", fails)
    with mflux.enabled(("qwen",), fused_blocks="on", share_modulation=False):
        kept = predict(model, latents, text_mask(20))
        mx.eval(kept)
        (text,) = mflux.status().blocks
    assert "Failed to compile" in text
    assert relative(kept, plain) <= FLOAT32


def test_several_threads() -> None:
    model = transformer()
    latents = draw(6, 1, TOKENS, CHANNELS)
    expected = predict(model, latents, text_mask(20))
    mx.eval(expected)
    results: list[float] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                # Of this thread's own stream, as a server's requests are.
                found = predict(model, draw(6, 1, TOKENS, CHANNELS), text_mask(20))
                mx.eval(found)
                results.append(relative(found, expected))
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    with mflux.enabled(fused_blocks="on"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(results) == 12
    assert max(results) <= FLOAT32


def test_gradients_with_fused_blocks(compare: Callable[..., Comparison]) -> None:
    model = transformer()
    latents = draw(6, 2, TOKENS, CHANNELS)
    mx.eval(predict(model, latents, text_mask(20, 5)))

    def work() -> mx.array:
        return mx.grad(lambda x: (predict(model, x, text_mask(20, 5)) ** 2).mean())(latents)

    assert compare(work, fused_blocks="on").difference <= FLOAT32


def test_chosen_by_paired_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says the cut takes half as long, or twice: blocks follow it."""
    monkeypatch.setattr(Record, "outcome", lambda _: None)
    for factor, fused in ((0.5, True), (2.0, False)):
        now = [0.0]
        model = transformer()
        latents = draw(6, 1, TOKENS, CHANNELS)
        options = mflux.Options(models=("qwen",))
        with mflux.enabled(("qwen",), fused_blocks="off"):
            from qwen_mfa.integrations.mflux.blocks import Blocks

            blocks = Blocks(_unbound_call(), options)
            blocks.begin(1_000_000)  # a picture that is worth compiling for
            own, cut = blocks.by_host, blocks.cut

            def slow(*args: Any, now: list[float] = now, own: Any = own) -> Any:
                now[0] += 1.0
                return own(*args)

            def other(*args: Any, now: list[float] = now, cut: Any = cut, f: float = factor) -> Any:
                now[0] += f
                return cut(*args)

            with monkeypatch.context() as patched:
                patched.setattr(trial_module, "time", SimpleNamespace(perf_counter=clock(now)))
                patched.setattr(blocks, "by_host", slow)
                patched.setattr(blocks, "cut", other)
                patched.setattr(QwenTransformerBlock, "__call__", blocks.method())
                for _ in range(6):
                    mx.eval(predict(model, latents, text_mask(20)))
        (trial,) = blocks.trials()
        assert not trial.running
        assert trial.fused == fused


def clock(now: list[float]) -> Callable[[], float]:
    return lambda: now[0]


def test_pictures_earn_what_compiling_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier pictures could have saved counts, across processes; then it is on record."""
    block = QwenTransformerBlock(dim=DIM, num_heads=HEADS, head_dim=128)
    monkeypatch.setattr(records, "SHARE", 0.5)

    def record(kind: str = "float32") -> Record:
        return Record(block, (kind,), (1, 6))

    need = record().cost * 2
    assert not record().pays(0.4 * need)
    assert not record().pays(0.4 * need)
    assert record().pays(0.4 * need)  # 1.2 of it
    record().keep_compiled(1.5)
    assert record().pays(0.0)
    assert not record("bfloat16").pays(0.0)
    assert record("float16").pays(need)
    assert record().outcome() is None
    record().keep({"fused": True, "reason": "1.20 x as fast"})
    found = trial_module.Trial(mflux.Options(models=("qwen",)), "a class", record())
    assert (found.running, found.fused) == (False, True)
    assert "on record" in found.reason
    for odd in ({"fused": "no"}, {"bfloat16": "2"}, {"bfloat16": None}, {"other": 1}):
        record().keep({"fused": True, "reason": "1.20 x as fast", **odd})
        assert record().outcome() is None, odd
    for odd in ("much", None, [], {}):
        decisions.opened().store.put(record("odd")._compiled, {"missed": odd})
        assert not record("odd").pays(0.0)


def test_a_small_picture_does_not_pay_for_compiling(
    generate: Callable[..., mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine is, and so however much time there would be to save.
    monkeypatch.setattr(records, "SHARE", 1e-6)
    model = transformer()
    for block in model.transformer_blocks:  # a structure that no other test compiled
        block.attn.norm_q.eps = 1e-5
    image = pipeline(model)
    plain = generate(image, steps=2)
    with mflux.enabled(**{**NOTHING, "fused_blocks": "auto"}):
        found = generate(image, steps=2)
        (text,) = mflux.status().blocks
    assert "have not earned yet" in text
    assert relative(found, plain) <= FLOAT32


def _unbound_call() -> Callable[..., Any]:
    step = mflux.step()
    assert step is not None
    assert step.blocks is not None
    return step.blocks.original


# Two passes


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_shared_modulation_is_bit_identical(
    generate: Callable[..., mx.array], dtype: mx.Dtype
) -> None:
    image = pipeline(transformer(dtype))
    with mflux.enabled(**NOTHING):
        plain = generate(image)
    with mflux.enabled(**{**NOTHING, "share_modulation": True}):
        shared = generate(image)
    assert mx.array_equal(plain, shared)
    assert parts("modulation") == {"shared by both passes": STEPS * LAYERS}


def test_the_negative_pass_is_skipped_at_guidance_1(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING):
        plain = generate(image, guidance=1.0)
    with mflux.enabled(**{**NOTHING, "skip_negative": True}):
        skipped = generate(image, guidance=1.0)
        counted = parts("negative passes")
        generate(image, guidance=1.5, steps=2)
    assert counted == {"computed": STEPS, "skipped: guidance is 1": STEPS}
    assert relative(skipped, plain) <= 2e-6


def test_whoever_else_calls_the_transformer_gets_an_array() -> None:
    model = transformer()
    latents = draw(6, 1, TOKENS, CHANNELS)
    plain = predict(model, latents, text_mask(20))
    with mflux.enabled(**NOTHING):
        found = predict(model, latents, text_mask(20))
        assert type(found) is mx.array
        assert relative(found, plain) <= FLOAT32
        guided = QwenImage.compute_guided_noise(found, plain, 1.0)
        assert type(guided) is mx.array


def test_a_pass_used_in_another_way_becomes_an_array() -> None:
    model = transformer()
    arguments = {
        "t": 1,
        "config": config(),
        "hidden_states": draw(6, 1, TOKENS, CHANNELS),
        "encoder_hidden_states": draw(21, 1, TEXT, TEXT_DIM),
        "encoder_hidden_states_mask": text_mask(20),
    }
    plain = model(**arguments)
    with mflux.enabled(**NOTHING):
        step = mflux.step()
        assert step is not None
        made = step.passes.defer(model, **arguments)
    # Off by now, as when it is switched off in the middle of an image.
    assert made.shape == plain.shape
    assert made.dtype == plain.dtype
    for found, expected in (
        (made + 1, plain + 1),
        (2 - made, 2 - plain),
        (made * made, plain * plain),
        (made[:, :3].array(), plain[:, :3]),
        (
            QwenImage.compute_guided_noise(made, made[:], 3.0),
            QwenImage.compute_guided_noise(plain, plain, 3.0),
        ),
    ):
        assert mx.array_equal(found, expected)


def test_passes_that_differ_in_their_timestep_share_nothing() -> None:
    model = transformer()
    with mflux.enabled(**{**NOTHING, "share_modulation": True}):
        step = mflux.step()
        assert step is not None
        passes = [
            step.passes.defer(
                model,
                t=t,
                config=config(),
                hidden_states=draw(6, 1, TOKENS, CHANNELS),
                encoder_hidden_states=draw(21, 1, TEXT, TEXT_DIM),
                encoder_hidden_states_mask=text_mask(20),
            )
            for t in (0, 1)
        ]
        QwenImage.compute_guided_noise(*passes, 4.0)
    assert not parts("modulation")


def test_disabled_and_enabled_in_the_middle_of_an_image(
    generate: Callable[..., mx.array],
) -> None:
    image = pipeline(transformer())
    plain = generate(image)

    class Switching:
        def call_in_loop(self, **_: Any) -> None:
            (mflux.disable if mflux.status().enabled else mflux.enable)()

    image.callbacks.register(Switching())
    mflux.enable()
    try:
        switched = generate(image)
    finally:
        mflux.disable()
    assert relative(switched, plain) <= FLOAT32


# Precision


def test_bfloat16_on_request(
    generate: Callable[..., mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pipeline(transformer(mx.bfloat16))
    plain = generate(image)
    dtypes: list[mx.Dtype] = []
    with mflux.enabled(precision="bfloat16", fused_blocks="off"):
        original = QwenTransformerBlock.__call__

        def seen(block: Any, **arguments: Any) -> Any:
            dtypes.append(arguments["hidden_states"].dtype)
            return original(block, **arguments)

        with monkeypatch.context() as patched:
            patched.setattr(QwenTransformerBlock, "__call__", seen)
            found = generate(image)
    assert set(dtypes) == {mx.bfloat16}
    assert found.dtype == plain.dtype == mx.float32
    assert parts("precision") == {"passes in bfloat16": 2 * STEPS}
    assert 0 < relative(found, plain) < 0.05


def test_bfloat16_asks_for_bfloat16_weights(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer())
    plain = generate(image)
    with mflux.enabled(precision="bfloat16", fused_blocks="off"):
        found = generate(image)
    assert relative(found, plain) <= FLOAT32
    assert parts("precision") == {"as mflux has it: no bfloat16 weights": 2 * STEPS}


# Freed modulation


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (mx.float32, {}),
        (mx.bfloat16, {"precision": "bfloat16"}),
        (mx.float32, {"fused_blocks": "on", "share_modulation": True}),
    ],
    ids=["float32", "bfloat16", "fused"],
)
def test_freed_modulation_is_bit_identical(
    generate: Callable[..., mx.array], dtype: mx.Dtype, options: dict[str, Any]
) -> None:
    image = pipeline(transformer(dtype))
    before = sum(x.nbytes for _, x in tree_flatten(image.transformer.parameters()))
    with mflux.enabled(**{**NOTHING, **options}):
        plain = generate(image)
    with mflux.enabled(**{**NOTHING, **options}, free_modulation=True):
        freed = generate(image)
        again = generate(image)
    assert mx.array_equal(plain, freed)
    assert mx.array_equal(plain, again)
    after = sum(x.nbytes for _, x in tree_flatten(image.transformer.parameters()))
    size = plain.itemsize if dtype == mx.float32 else 2
    assert before - after == LAYERS * 2 * (6 * DIM * DIM + 6 * DIM) * size


def test_what_is_on_record_holds_without_modulation_s_weights(
    generate: Callable[..., mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block whose modulation was let go is of the class that it was of: nothing is tried anew."""
    asked: set[str] = set()

    def outcome(record: Record) -> dict[str, Any]:
        asked.add(record._outcome)
        return {"fused": True, "reason": "1.20 x as fast"}

    monkeypatch.setattr(Record, "outcome", outcome)
    image = pipeline(transformer())
    found = []
    for free in (False, True):
        with mflux.enabled(**{**NOTHING, "fused_blocks": "auto"}, free_modulation=free) as _:
            found.append(generate(image))
            assert len(mflux.status().blocks) == 1
    assert len(asked) == 1
    assert mx.array_equal(*found)
    assert parts("fused blocks") == {"fused": 4 * STEPS * LAYERS}


def test_a_freed_model_is_not_kept_alive(generate: Callable[..., mx.array]) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING, free_modulation=True):
        generate(image, steps=2)
        gone = weakref.ref(image.transformer)
        image.transformer = None
        gc.collect()
        assert gone() is None


def test_another_schedule_is_refused_before_anything_runs(
    generate: Callable[..., mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pipeline(transformer())
    with mflux.enabled(**NOTHING, free_modulation=True):
        generate(image)
        ran: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(modulation, "show", lambda _: ran.append("a block"))
            with pytest.raises(HostError, match="another schedule"):
                generate(image, steps=STEPS + 1)
        assert not ran
    with pytest.raises(HostError, match="let go"):
        generate(image)


# Switches

# Of each: where it is on, what `stats()` and --json say (the part and one outcome), what the line.
TOLD: dict[str, tuple[object, str, str, str]] = {
    "fused_blocks": ("on", "fused blocks", "fused", "fused blocks 11 of 12"),
    "early_start": ("on", "early start", "starts", "2 early starts"),
    "share_modulation": (True, "modulation", "shared by both passes", "modulation shared 6 times"),
    "share_mask": (True, "text mask", "remembered", "text mask converted 2 of "),
    "precision": ("bfloat16", "precision", "passes in bfloat16", "4 passes in bfloat16"),
    "free_modulation": (
        True, "modulation", "MiB of weights let go", "4 MiB of modulation weights let go"
    ),
    "skip_negative": (
        True, "negative passes", "skipped: guidance is 1", "2 negative passes skipped"
    ),
}  # fmt: skip
# With models, processes and options of their own: `test_qwen21`, `test_together`.
ELSEWHERE = {"qwen21_steps", "distributed"}


def test_every_part_has_a_switch_and_is_told(generate: Callable[..., mx.array]) -> None:
    assert TOLD.keys() | ELSEWHERE == SWITCHES.keys()
    off = {name: next(x for x in SWITCHES[name].values if x != TOLD[name][0]) for name in TOLD}
    on = {name: value for name, (value, *_) in TOLD.items()}
    for switches, guidance, expected in (
        ({**on, "free_modulation": False}, 4.0, TOLD.keys() - {"free_modulation", "skip_negative"}),
        ({**off, "skip_negative": True}, 1.0, {"skip_negative"}),
        ({**off, "free_modulation": True}, 4.0, {"free_modulation"}),
        (off, 1.0, set()),
    ):
        telemetry.start()
        image = pipeline(transformer(mx.bfloat16))
        with mflux.enabled(**switches):
            generate(image, guidance=guidance)
            report = run.describe(Usage(), [], 0, compare=False)
        line = "; ".join(run._around_attention(report["parts"]))
        for name, (_, part, outcome, words) in TOLD.items():
            told = name in expected
            assert bool(parts(part).get(outcome)) == told, (name, parts(part))
            assert report["parts"].get(part, {}).get(outcome) == parts(part).get(outcome)
            assert (words in line) == told, (name, line)
            assert report["integration"]["options"][name] == switches[name]


def test_the_command_has_every_switch() -> None:
    """Its options are made of the same table, and no option says the defaults of `Options`."""
    parser = argparse.ArgumentParser()
    run.configure(parser)
    defaults = mflux.Options(models=("qwen",))
    plain = parser.parse_args([])
    for name, switch in SWITCHES.items():
        option, default = name.replace("_", "-"), getattr(defaults, name)
        assert getattr(plain, name) == default == switch.values[0]
        if isinstance(default, bool):
            words, value = [f"--no-{option}" if default else f"--{option}"], not default
        else:
            words, value = [f"--{option}", switch.values[1]], switch.values[1]
        assert getattr(parser.parse_args(words), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [("fused_blocks", "maybe"), ("precision", "int8"), ("skip_negative", "no")],
)
def test_values_that_a_switch_does_not_have(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        mflux.enable(**{name: value})


def test_unknown_switches() -> None:
    with pytest.raises(TypeError, match="no_such"):
        mflux.enable(no_such=1)


def test_structure_read_and_filled_in_one_order() -> None:
    block = QwenTransformerBlock(dim=DIM, num_heads=HEADS, head_dim=128)
    arrays, structure = skeleton.read(block)
    assert {id(x) for x in arrays} == {id(x) for _, x in tree_flatten(block.parameters())}
    twin = skeleton.copy(block)
    skeleton.fill(twin, block, iter(arrays))
    named = dict(tree_flatten(block.parameters()))
    assert all(x is named[name] for name, x in tree_flatten(twin.parameters()))
    assert skeleton.read(twin)[1] == structure
    block.attn.num_heads = 1
    assert skeleton.read(block)[1] != structure
