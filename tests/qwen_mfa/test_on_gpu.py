"""What only a GPU shows: float64 fails, commands work, and problems are measured at full size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.problem import Problem
from qwen_mfa.selection import removal, session
from qwen_mfa.transforms.padding import Pattern
from qwen_mfa.tuning.removal import mask_of
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.reference import attention_float64, distance, largest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu

SHAPE = {"batch": 1, "heads_q": 24, "heads_kv": 24, "head_dim": 128, "value_dim": 128}
ROUNDING = 2**-8  # of a bfloat16 result, with a factor 2 to spare


@pytest.fixture(autouse=True)
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("QWEN_MFA_BACKEND", raising=False)
    session.start()


def test_float64_fails_as_the_stand_in_says() -> None:
    with pytest.raises(ValueError, match="float64 is not supported on the GPU"):
        mx.zeros(3).astype(mx.float64)
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        assert mx.zeros(3).astype(mx.float64).sum().item() == 0


@pytest.mark.parametrize("padding", ["", "0", "1"], ids=["measured", "left out", "masked"])
@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_attention_is_right(kind: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_KEEP_PADDING", padding)
    session.start()
    tokens = 300
    shape = () if kind == "none" else (1, 1, 1, tokens)
    of = Problem(
        **SHAPE, seq_q=tokens, seq_kv=tokens, dtype="bfloat16", mask=kind, mask_shape=shape
    )  # type: ignore[arg-type]
    call = draw(of, layout="interleaved").call
    mask = None if kind == "none" else mask_of(of, Pattern(hidden=90, runs=2))
    out = qwen_mfa.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale, mask=mask)
    exact = attention_float64(replace(call, mask=mask))
    assert distance(out, exact) <= ROUNDING * largest(exact)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_padding_is_measured_at_full_size(kind: str) -> None:
    """A small problem, where launches are all that takes time, does not stand for this one."""
    tokens = 4608
    of = Problem(
        **SHAPE, seq_q=tokens, seq_kv=tokens, dtype="bfloat16", mask=kind,
        mask_shape=(1, 1, 1, tokens),
    )  # type: ignore[arg-type]  # fmt: skip
    found = removal.decide(of, Pattern(hidden=412, runs=2))
    assert found.samples
    assert not any(sample.reduced for sample in found.samples)


@pytest.mark.parametrize(
    ("command", "statuses"),
    [
        ("info --json", {0}),
        ("doctor --json", {0, 1}),
        ("explain 1 24 1124 1124 128 bfloat16 --json", {0}),
        ("selftest --json --image-tokens 60", {0}),
    ],
    ids=["info", "doctor", "explain", "selftest"],
)
def test_commands(command: str, statuses: set[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_mfa", *command.split()],
        env=dict(os.environ), check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode in statuses, done.stderr[-2000:]
    assert "float64" not in done.stderr
    assert isinstance(json.loads(done.stdout), dict)
