"""float64 stays on the CPU: nothing here may fail where MLX's default device is a GPU.

The stand-in makes the mistake fail on this machine; `tests/qwen_mfa/test_on_gpu.py` shows on a real
GPU that it fails so there.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import cli, qwen_image
from qwen_mfa.cli import device, doctor, precision, selftest
from qwen_mfa.cli.bench import step
from qwen_mfa.kernels import mlx_fp16
from qwen_mfa.selection import session
from qwen_mfa.validation import reference
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.validate import validate
from qwen_mfa.validation.variants import variant_of
from tests.qwen_mfa.kernels.test_mlx_fp16 import problem
from tests.standins import gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.cpu


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("QWEN_MFA_BACKEND", raising=False)
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)
    session.start()
    gpu.activate(monkeypatch.setattr)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_calls: None) -> None:
    """Let commands that run in this process take small problems."""
    monkeypatch.setattr(device, "SIDE", 64)
    monkeypatch.setattr(precision, "ON_GPU", (2, 4))
    monkeypatch.setattr(doctor, "IMAGES", {"small": 80})
    monkeypatch.setattr(doctor, "ALSO", {"small": "bfloat16"})
    monkeypatch.setattr(step, "WIDTH", 2 * 128)
    monkeypatch.setattr(step, "HEADS", 2)


# --- the stand-in ------------------------------------------------------------------------------

WIDE = mx.array([1.0, -3.0], dtype=mx.float64)
OPERATIONS: dict[str, Callable[[], Any]] = {
    "cast": lambda: mx.zeros(3).astype(mx.float64),
    "operator": lambda: WIDE + 1,
    "on the right": lambda: 2.0 * WIDE,
    "in place": lambda: WIDE.__iadd__(1.0),
    "comparison": lambda: WIDE > 0,
    "method": lambda: WIDE.max(axis=0),
    "function": lambda: mx.exp(WIDE),
    "several": lambda: mx.concatenate([WIDE, WIDE]),
    "made": lambda: mx.ones(3, dtype=mx.float64),
    "drawn": lambda: mx.linalg.norm(WIDE),
    "item": lambda: WIDE[0],
    "on the GPU by name": lambda: mx.abs(WIDE, stream=mx.gpu),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_the_stand_in_refuses_float64(standin: None, operation: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=gpu.MESSAGE):
        operation()


def test_the_stand_in_allows_what_mlx_allows(standin: None) -> None:
    made = mx.array([1.0, 2.0], dtype=mx.float64)
    assert made.tolist() == [1.0, 2.0]
    assert memoryview(made)[0] == 1  # type: ignore[arg-type]
    assert mx.abs(made, stream=mx.cpu).tolist() == [1.0, 2.0]
    assert (mx.zeros(3) + 1).sum().item() == 3
    with mx.stream(mx.new_stream(mx.Device(mx.DeviceType.cpu))):
        assert (made * 2).sum().item() == 6
        with mx.stream(mx.Device(mx.DeviceType.cpu)):
            assert (made * 2).sum().item() == 6
        assert made.max().item() == 2
    with pytest.raises(ValueError, match=gpu.MESSAGE):
        made.max()


# --- what computes in float64 ------------------------------------------------------------------


def selftest_itself() -> None:
    known = selftest.reference("bfloat16", image_tokens=0)
    row = selftest.measure("bfloat16", known, masked=True, image_tokens=0)  # with children
    assert row.agrees, asdict(row)
    assert (row.kernel, row.chosen) == ("mlx", "mlx"), "the stand-in was not there"


def validation() -> None:
    assert validate(mlx_fp16, variant_of(problem())).ok


def rounding() -> None:
    call = draw(problem()).call
    exact = reference.attention_float64(call)
    out = qwen_mfa.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
    assert reference.distance(out, exact) <= 0.02 * reference.largest(exact)


def positions() -> None:
    mx.eval(*asdict(qwen_image.rope_tables([(1, 2, 2)], 3)).values())


USES = {
    "selftest": selftest_itself,
    "validation": validation,
    "reference": rounding,
    "rope": positions,
}


@pytest.mark.usefixtures("standin", "quick")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_it_asks_for_the_cpu(use: Callable[[], None]) -> None:
    use()


@pytest.mark.usefixtures("standin", "quick")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_had_it_not_asked_it_would_fail_here(
    use: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original fault, put back: no stream is asked for."""
    monkeypatch.setattr(mx, "stream", lambda _: nullcontext())
    with pytest.raises((ValueError, AssertionError), match=gpu.MESSAGE):
        use()


@pytest.mark.parametrize(
    ("command", "statuses"),
    [
        ("doctor", {0, 1}),
        ("doctor --json", {0, 1}),
        ("explain 1 2 70 70 16 bfloat16", {0}),
        ("explain 1 2 70 70 16 bfloat16 --mask bool", {0}),
        ("info", {0}),
        ("bench attention 1,2,70,90,32 --rounds 2 --no-memory", {0}),
        ("bench attention 1,2,70,90,32 --rounds 2 --no-memory --mask padding,causal --peers", {0}),
        ("bench step 2,3 --modules own --rounds 1 --no-memory", {0}),
        ("bench dispatch --rounds 1", {0}),
        ("bench padding --image-tokens 60 --text-tokens 20 --real 9 --heads 2 --rounds 2", {0}),
    ],
)
@pytest.mark.usefixtures("standin", "quick")
def test_commands(command: str, statuses: set[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.split()) in statuses
    shown = capsys.readouterr()
    assert gpu.MESSAGE not in shown.out + shown.err
    if command.startswith("doctor"):
        assert "MLX's default device is not the CPU" in shown.out, "the stand-in was not there"


@pytest.mark.usefixtures("standin")
def test_the_stand_in_reaches_child_processes() -> None:
    code = "import mlx.core as mx; mx.zeros(3).astype(mx.float64)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip().endswith(gpu.MESSAGE)
