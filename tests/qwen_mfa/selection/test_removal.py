"""Whether padded keys are left out: measured, kept, told; and which masks are looked at."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.cli import main
from qwen_mfa.selection import choose, removal, session
from qwen_mfa.transforms import masks, padding
from qwen_mfa.transforms.padding import Part, Pattern
from qwen_mfa.tuning import measure
from qwen_mfa.tuning import removal as measuring
from tests.qwen_mfa.tuning.test_tuning import problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qwen_mfa.problem import Problem

KEYS, TEXT, USED = 128, 40, 9
PATTERN = Pattern(hidden=TEXT - USED, runs=2)


def padded(kind: str = "bool", keys: int = KEYS, **changes: object) -> Problem:
    sizes = {"heads_q": 2, "heads_kv": 2, "head_dim": 16, "value_dim": 16, "dtype": "float32"}
    shape = (1, 1, 1, keys)
    return problem(**{**sizes, **changes}, seq_q=keys, seq_kv=keys, mask=kind, mask_shape=shape)


@pytest.fixture(autouse=True)
def small_problems_too(monkeypatch: pytest.MonkeyPatch, cold: Path) -> None:
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.delenv("QWEN_MFA_KEEP_PADDING", raising=False)
    monkeypatch.setenv("QWEN_MFA_BACKEND", "mlx")
    session.start()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[str]]:
    """Let every measurement find that gain; return the log of what was measured."""

    def install(gain: float) -> list[str]:
        log: list[str] = []

        def compare(ways: measure.Ways, ends: tuple[Problem, Problem]) -> list[measure.Sample]:
            log.append(str(ends[0]))
            sample = measure.Sample(
                problem="simulated", seconds=0.5, seconds_mlx=1.0, gain=gain, noise=0.02, pairs=7,
                reduced=False,
            )  # fmt: skip
            return [sample]

        monkeypatch.setattr(measure, "compare", compare)
        return log

    return install


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a mask may wait, as on a GPU."""
    monkeypatch.setattr(removal, "looking_may_wait", lambda: True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return which masks are read, by their number of visible keys."""
    log: list[int] = []
    parse = padding._parse

    def logged(data: bytes, encoding: padding._Encoding, keys: int) -> tuple[Part, ...] | None:
        log.append(sum(data) if encoding.code == "B" else -1)
        return parse(data, encoding, keys)

    monkeypatch.setattr(padding, "_parse", logged)
    return log


def operands() -> list[mx.array]:
    keys = mx.random.split(mx.random.key(3), 3)
    return [mx.random.normal((1, 2, KEYS, 16), key=key) for key in keys]


def text(used: int = USED) -> mx.array:
    position = mx.arange(KEYS)
    return ((position < used) | (position >= TEXT))[None, None, None]


def attend(mask: mx.array) -> mx.array:
    """Attend; the result must be that of the mask as it is now."""
    q, k, v = operands()
    ours = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)
    assert mx.abs(ours - theirs).max().item() < 1e-5
    return ours


def removed() -> int:
    return sum(n for (kernel, _), n in qwen_mfa.stats().reasons.items() if kernel is None)


# --- a choice like any other -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "wins"), [(0.7, True), (0.021, True), (0.019, False), (-1, False)]
)
def test_only_what_wins_by_more_than_the_noise_is_done(
    gain: float, wins: bool, found: Callable[[float], list[str]]
) -> None:
    log = found(gain)
    attend(text())
    attend(text())
    assert removed() == (2 if wins else 0)
    assert len(log) == 1, "measured once"


def test_what_was_measured_is_kept_for_the_class_and_the_device(
    found: Callable[[float], list[str]],
) -> None:
    log = found(0.7)
    assert removal.decide(padded(), PATTERN).removed
    session.start()  # as in a new process
    found(-1)
    again = removal.decide(padded(keys=120), replace(PATTERN, hidden=25))
    assert again.removed
    assert "0.50 of the masked time" in again.reason
    assert len(log) == 1


@pytest.mark.parametrize(
    "other",
    [
        (padded("additive"), PATTERN),
        (padded(keys=300), PATTERN),
        (padded(), replace(PATTERN, hidden=90)),
        (padded(), replace(PATTERN, hidden=0)),
        (padded(), replace(PATTERN, runs=1)),
        (padded(dtype="bfloat16"), PATTERN),
    ],
    ids=["kind", "length", "hidden", "nothing hidden", "runs", "dtype"],
)
def test_other_classes_are_measured_on_their_own(
    other: tuple[Problem, Pattern], found: Callable[[float], list[str]]
) -> None:
    log = found(0.7)
    removal.decide(padded(), PATTERN)
    removal.decide(*other)
    assert len(log) == 2


def test_nothing_is_measured_where_that_is_not_allowed(
    found: Callable[[float], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = found(0.7)
    later = removal.decide(padded(), PATTERN, may_measure=lambda: False)
    assert (later.removed, later.final) == (False, False)
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    session.start()
    never = removal.decide(padded(), PATTERN)
    assert (never.removed, never.final) == (False, True)
    assert "QWEN_MFA_TUNE=0" in never.reason
    assert not log


@pytest.mark.parametrize(("value", "wins"), [("0", True), ("1", False)])
def test_the_switch_goes_before_what_was_measured(
    value: str, wins: bool, found: Callable[[float], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = found(-1 if wins else 1)
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", value)
    session.start()
    attend(text())
    assert removed() == wins
    assert "QWEN_MFA_KEEP_PADDING" in removal.decide(padded(), PATTERN).reason
    assert not log


def test_a_forced_kernel_that_takes_no_mask_gets_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, found: Callable[[float], list[str]]
) -> None:
    found(-1)
    additive = padded("additive", dtype="bfloat16")
    with qwen_mfa.use("mlx-fp16"):
        assert removal.decide(additive, PATTERN).removed


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize("hidden", [0, 3, 31, 100])
def test_what_is_measured_has_the_pattern(kind: str, runs: int, hidden: int) -> None:
    of = padded(kind)
    mask = measuring.mask_of(of, Pattern(hidden=hidden, runs=runs))
    assert mask.shape == of.mask_shape
    visible = mask if kind == "bool" else mask == 0
    assert visible.sum().item() == KEYS - hidden
    call = replace(measuring._draw(of, PATTERN), mask=mask)
    parts = padding.visible_parts(call, min_flops=0)
    assert parts is not None
    seen = padding.pattern_of(parts, KEYS)
    assert seen.hidden == hidden
    assert seen.runs == (runs if hidden >= runs else 1 if not hidden else hidden + 1)


def test_rows_of_several_parts() -> None:
    of = replace(padded(), batch=4, mask_shape=(4, 1, 1, KEYS))
    call = measuring._draw(of, Pattern(hidden=20, runs=2, parts=2))
    parts = padding.visible_parts(call, min_flops=0)
    assert parts is not None
    assert padding.pattern_of(parts, KEYS) == Pattern(hidden=20, runs=2, parts=2)


def test_it_is_really_measured() -> None:
    """No simulation: figures of both ways, of problems of the class, and a decision from them."""
    decision = removal.decide(padded(keys=200), Pattern(hidden=150, runs=2))
    assert decision.samples
    assert all(s.seconds > 0 and s.pairs >= measure.MIN_PAIRS for s in decision.samples)
    assert decision.removed == all(sample.wins for sample in decision.samples)


def test_explain_tells_it(
    found: Callable[[float], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    found(0.7)
    command = "explain 1 2 128 128 16 float32 --mask bool --mask-shape 1,1,1,128"
    assert main([*command.split(), "--hidden", "31"]) == 0
    out = capsys.readouterr().out
    assert "padding   left out" in out
    assert "0.50 of the masked time" in out
    found(-1)
    assert main([*command.split(), "--hidden", "90", "--json"]) == 0
    assert '"removed": false' in capsys.readouterr().out
    assert main([*command.split(), "--hidden", "128"]) == 2
    assert "one has to be left" in capsys.readouterr().err
    assert main([*command.split()[:-2], "--hidden", "3"]) == 2
    assert "--mask-shape 1,1,1,128" in capsys.readouterr().err


# --- which masks are looked at -----------------------------------------------------------------


def test_a_mask_that_all_blocks_share_is_looked_at_by_each(
    on_gpu: None, found: Callable[[float], list[str]], reads: list[int]
) -> None:
    """It was evaluated at the first: reading it again waits for nothing."""
    found(0.7)
    mask = text()
    for _ in range(10):
        attend(mask)
    assert removed() == 10


def test_masks_made_anew_for_every_block_are_soon_left_alone(
    on_gpu: None, found: Callable[[float], list[str]], reads: list[int]
) -> None:
    found(0.7)
    for _ in range(60):
        attend(text())
    assert removed() == masks.MAX_NEW
    shared = text()
    for _ in range(3):
        attend(shared)
    assert removed() == masks.MAX_NEW + 2, "seen twice, so it is shared"
    for _ in range(60):
        attend(text())
    assert removed() <= 2 * masks.MAX_NEW + 2


@pytest.mark.cpu
def test_on_the_cpu_every_mask_is_looked_at(found: Callable[[float], list[str]]) -> None:
    found(0.7)
    for _ in range(10):
        attend(text())
    assert removed() == 10


def test_a_mask_that_stays_is_not_read_by_every_block(
    on_gpu: None, found: Callable[[float], list[str]], reads: list[int]
) -> None:
    found(-1)
    mask = text()
    attend(mask)
    del reads[:]
    for _ in range(masks.PATIENCE):
        attend(mask)
    assert not reads
    attend(mask)
    assert len(reads) == 1
    del reads[:]
    with pytest.MonkeyPatch.context() as patch:  # and nothing but the look-up is added
        patch.setattr(choose, "choose", None)
        for _ in range(10):
            attend(mask)
    assert not reads


@pytest.mark.parametrize("gain", [0.7, -1.0], ids=["removed", "masked"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_no_update_in_place_gives_a_stale_answer(
    device: str, gain: float, found: Callable[[float], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By item, by operator, through NumPy's view, back again, under another name: all are seen."""
    monkeypatch.setattr(removal, "looking_may_wait", lambda: device == "gpu")
    found(gain)
    mask = text()
    attend(mask)
    same = mask
    for step in range(60):
        if step % 6 == 0:
            mask[0, 0, 0, step % TEXT] = step % 4 == 0
        elif step % 6 == 1:
            mask &= text(step % TEXT)
        elif step % 6 == 2:
            mask |= text(step % 7)
        elif step % 6 == 3:
            np.asarray(mask)[0, 0, 0, 3:20] = step % 4 == 1
        elif step % 6 == 4:
            memoryview(mask)[0, 0, 0, 2] = step % 4 == 0  # type: ignore[arg-type, index]
        else:
            mask[..., 5:] = text(30)[..., 5:]
        attend(same)
        attend(mask)


def test_an_address_that_is_used_again_is_another_mask(
    on_gpu: None, found: Callable[[float], list[str]]
) -> None:
    """Objects die, and others take their place, address and all."""
    found(-1)
    addresses = set()
    looks = session.current.looks
    for used in range(12):
        mask = text(used)
        addresses.add(id(mask))
        attend(mask)
        looks.stays(mask)
        assert looks.staying(mask)
        del mask
        gc.collect()
        other = text(used)
        assert not looks.staying(other)
        addresses.add(id(other))
        del other
    assert len(addresses) < 24, "no address came twice: nothing was shown"


@pytest.mark.cpu  # where memory is counted to the byte
def test_no_mask_is_kept_alive(on_gpu: None, found: Callable[[float], list[str]]) -> None:
    found(0.7)
    before = mx.get_active_memory()
    for used in range(40):
        mask = mx.concatenate([text(used % TEXT)] * 1)
        attend(mask)
        mx.eval(mask)
    del mask
    gc.collect()
    assert len(session.current.looks._seen) <= masks.MAX_REMEMBERED
    assert mx.get_active_memory() - before < 40 * KEYS


def test_what_is_not_known_yet_is_told_as_masked(on_gpu: None) -> None:
    log: list[telemetry.Event] = []
    stop = telemetry.subscribe(log.append)
    attend(text())
    stop()
    assert log[-1].kernel == "mlx"
