"""What the commands say where MLX's default device is a GPU: here they are only told so."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa import machine
from qwen_mfa.cli import advice, device, doctor, sample, selftest
from qwen_mfa.cli.bench import peers, shapes
from qwen_mfa.cli.table import mebibytes, rate
from qwen_mfa.selection import session
from qwen_mfa.validation.reference import (
    attention_float64,
    distance,
    exp_float64,
    largest,
)
from tests.qwen_mfa.cli.test_doctor import LINUX

if TYPE_CHECKING:
    from pathlib import Path

NVIDIA = replace(
    LINUX,
    gpu="sm_90a",
    driver="580.95.05",
    backends=("mlx-cuda-13 0.32.4 (py3-none-manylinux_2_35_x86_64)",),
)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: True)


def test_what_is_compared_is_compared_in_float64() -> None:
    wide = mx.array([1.0, -3.0], dtype=mx.float64)
    assert largest(wide) == 3
    assert distance(mx.array([1.0, 2.0]), wide) == 5
    assert distance(mx.array([1.0, mx.nan]), wide) == mx.inf


def test_memory_is_what_mlx_allocated(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "get_active_memory", lambda: 100)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 700)
    monkeypatch.setattr(device, "peak_resident", lambda: 10**9)
    assert device.growth(lambda: "done") == ("done", 600)


@pytest.mark.cpu  # resident memory is what counts there
def test_memory_is_left_out_where_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS an earlier peak is not forgotten, so the growth would be too small."""
    assert device.growth(lambda: bytearray(1 << 26))[1] > 1 << 25  # type: ignore[operator]
    monkeypatch.setattr(device, "SYSTEM", "darwin")
    assert device.growth(lambda: "done") == ("done", None)
    assert mebibytes(None) == "-"


def test_the_peak_is_a_product_s(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "SIDE", 64)
    found = device.peak_rate("bfloat16")
    assert found is not None
    assert found > 0
    assert "64 x 64 matrices" in device.peak_means()
    assert rate(612_345.0) == "612 TFLOP/s"
    assert rate(47.44) == "47.4 GFLOP/s"


def test_peers_on_the_cpu_say_nothing_about_a_gpu(
    on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(peers, "_torch_device", lambda: "")
    call = shapes.draw(shapes.parse("1,2,4,4,8"), "float32", "none")
    assert {name: peers.refusal(name, call) for name in peers.NEEDED} == {
        "torch": "this PyTorch has no GPU",
        "jax": "computes on the CPU",
        "onnxruntime": "computes on the CPU",
        "numpy": "computes on the CPU",
    }


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build",
            "580.95.05",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12", "535.183.01"),
        ("something else", "of an unknown version"),
        (None, ""),
    ],
    ids=["open", "closed", "unknown", "none"],
)  # fmt: skip
def test_the_driver_is_read(
    text: str | None, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text, encoding="ascii")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "version")
    assert machine.read().driver == driver


def test_advice_on_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_NUM_THREADS", "1")  # of an engine that does not run there
    assert advice.give(NVIDIA, "ready", "", []) == []
    assert advice.give(NVIDIA, "none", "", []) == []
    assert "NVIDIA GPU" in advice.expectation(NVIDIA)
    assert advice.expectation(LINUX) == ""
    monkeypatch.delenv("QWEN_MFA_NUM_THREADS")
    session.start()
    unused = replace(LINUX, driver="580.95.05")
    (only,) = advice.give(unused, "ready", "", [])
    assert "'mlx[cuda13]'" in only.text
    (only,) = advice.give(replace(unused, driver="535.183.01"), "ready", "", [])
    assert "'mlx[cuda12]'" in only.text
    (only,) = advice.give(replace(NVIDIA, gpu=""), "ready", "", [])
    assert "finds no GPU" in only.text


def test_doctor_does_not_call_it_as_fast_as_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    monkeypatch.setattr(machine, "read", lambda: NVIDIA)
    text = doctor.as_text(doctor.examine())
    assert "GPU sm_90a, NVIDIA driver 580.95.05" in text
    assert "no kernel of its own" in text
    assert doctor.NOTHING not in text


def test_rows_for_float64_have_both_ends() -> None:
    for number in (1, 5, 676, 1124):
        assert selftest._rows(number) == list(range(number))
    many = selftest._rows(4196)
    assert len(many) == selftest.MAX_SCORES // 4196
    assert (many[0], many[-1]) == (0, 4195)
    assert len(selftest._rows(16484)) > 80


def test_the_self_test_s_reference_is_that_of_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sample, selftest):  # all heads are computed alike
        monkeypatch.setattr(module, "HEADS", 2)
    exact = selftest.reference("float32", image_tokens=1)
    for masked in (False, True):
        call = sample.draw("float32", masked=masked, image_tokens=1)
        assert distance(exact.without[masked], attention_float64(call)) < 1e-14


def test_exponentials_of_the_reference_are_in_float64() -> None:
    """MLX's own are not: 2.7e-6 off, more than an error in float32."""
    powers = [-745.0, -30.3, -7.77, -1e-9, 0.0, 1.25]
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        found = exp_float64(mx.array([*powers, -math.inf, math.nan], dtype=mx.float64)).tolist()
    assert isinstance(found, list)
    assert found[:-2] == pytest.approx([math.exp(power) for power in powers], rel=1e-14)
    assert found[-2] == 0
    assert math.isnan(found[-1])
