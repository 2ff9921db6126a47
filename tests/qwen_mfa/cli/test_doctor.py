"""``qwen-mfa doctor``, ``explain`` and ``bench dispatch``, and what they know of machines."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from qwen_mfa import cli, machine
from qwen_mfa.cli import advice, doctor
from qwen_mfa.cli.bench.dispatch import Line, as_text
from qwen_mfa.cli.bench.rounds import Spread
from qwen_mfa.kernels import cpu, registry
from qwen_mfa.machine import Host
from qwen_mfa.native import library
from qwen_mfa.selection import candidates, decisions, session
from qwen_mfa.transforms import padding
from qwen_mfa.tuning import measure
from qwen_mfa.validation.validate import ValidationResult

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qwen_mfa.conftest import Faulty

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("cold")]

LINUX = Host(
    system="Linux",
    release="6.1",
    build="1",
    machine="x86_64",
    chip="some chip",
    features=("avx2", "fma"),
    cpus=4,
    memory=1 << 34,
    gpu="",
    python="3.11.7",
    mlx="0.32.4",
    backends=("mlx-cpu 0.32.4 (py3-none-manylinux_2_35_x86_64)",),
)
MAC = replace(
    LINUX,
    system="macOS",
    release="15.4",
    build="24E248",
    machine="arm64",
    chip="Apple M2",
    gpu="applegpu_g14g",
    backends=("mlx-metal 0.32.4 (py3-none-macosx_15_0_arm64)",),
)
M5_OLD_BUILD = replace(MAC, chip="Apple M5", gpu="applegpu_g17g", release="26.3")
M5_OLD_SYSTEM = replace(M5_OLD_BUILD, release="15.6")
M5_GOOD = replace(M5_OLD_BUILD, backends=("mlx-metal 0.32.4 (py3-none-macosx_26_0_arm64)",))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for as short a time as can be, on smaller images than the titles say."""
    monkeypatch.setattr(measure, "BUDGET", 0.05)
    tokens = {"512 x 512": 28, "1024 x 1024": 92, "1328 x 1328": 188}
    monkeypatch.setattr(doctor, "IMAGES", tokens)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    capsys.readouterr()
    status = cli.main(list(argv))
    return status, capsys.readouterr().out


# --- the machine --------------------------------------------------------------------------------


def test_this_machine() -> None:
    here = machine.read()
    assert here.system in {"Linux", "macOS"}
    assert here.cpus >= 1
    assert here.memory > 1 << 28
    assert here.chip
    assert here.mlx
    assert here.backends
    assert "tag unknown" not in here.backends[0]


@pytest.mark.parametrize(
    ("machine", "generation", "matrix", "family"),
    [
        (LINUX, 0, False, "none"),
        (MAC, 14, False, "applegpu_g14g (M2)"),
        (M5_OLD_BUILD, 17, False, "applegpu_g17g (M5)"),
        (M5_GOOD, 17, True, "applegpu_g17g (M5)"),
        (replace(M5_GOOD, release="26.1"), 17, False, "applegpu_g17g (M5)"),
    ],
    ids=["linux", "m2", "m5 old build", "m5", "m5 old system"],
)
def test_apple_gpus(machine: Host, generation: int, matrix: bool, family: str) -> None:
    assert machine.apple_generation == generation
    assert machine.mlx_has_matrix_kernels is matrix
    assert machine.gpu_family == family


def test_what_is_asked_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "kern.osversion": "25D125",
        "machdep.cpu.brand_string": "Apple M4 Max",
        "hw.optional.arm.FEAT_BF16": "1",
        "hw.optional.arm.FEAT_SME": "0",
    }
    monkeypatch.setattr(machine, "SYSTEM", "darwin")
    monkeypatch.setattr(machine, "sysctl", lambda name: answers.get(name, ""))
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: ("26.3", ("", "", ""), "arm64"))
    here = machine.read()
    assert (here.system, here.release, here.build) == ("macOS", "26.3", "25D125")
    assert here.chip == "Apple M4 Max"
    assert here.features == ("FEAT_BF16",)


# --- advice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "state", "says"),
    [
        (LINUX, "ready", []),
        (MAC, "ready", []),
        (M5_GOOD, "ready", []),
        (LINUX, "unusable", ["Repair the library. It is broken."]),
        (LINUX, "none", ["Install a wheel with a native library"]),
        (replace(LINUX, backends=()), "ready", ["Install a backend of MLX"]),
        (M5_OLD_BUILD, "ready", ["Reinstall MLX's build for macOS 26"]),
        (M5_OLD_SYSTEM, "ready", ["Update to macOS 26.2 or later"]),
        (replace(MAC, release="14.5"), "none", ["wheel with a native", "Update to macOS 15"]),
    ],
)
def test_advice(machine: Host, state: str, says: list[str]) -> None:
    given = advice.give(machine, state, "It is broken.", [])
    assert len(given) == len(says)
    for one, text in zip(given, says, strict=True):
        assert text in one.text


def test_at_most_three_the_greatest_gain_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_BACKEND", "mlx")
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    monkeypatch.setenv("QWEN_MFA_NUM_THREADS", "1")
    bad = candidates.Finding(
        kernel=cpu, reason="wrong", validation=ValidationResult(ok=False, reason="head 1 is wrong")
    )
    given = advice.give(replace(LINUX, backends=()), "none", "", [bad])
    assert len(given) == 3
    weights = [one.weight for one in given]
    assert weights == sorted(weights, reverse=True)
    monkeypatch.undo()
    session.start()
    (only,) = advice.give(LINUX, "ready", "", [bad, bad])
    assert "head 1 is wrong" in only.text


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_doctor_on_a_good_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "doctor")
    assert status == 0, text
    for word in ("512 x 512", "1024 x 1024", "1328 x 1328", "portable engine", "Nothing to do"):
        assert word in text
    assert len(text.splitlines()) <= 32, "one screen"
    status, text = run(capsys, "doctor", "--json")
    report = json.loads(text)
    assert report["status"] == status == 0
    assert report["advice"] == []
    for title, shape in report["shapes"].items():
        names = [found["kernel"] for found in shape["candidates"]]
        assert names == [kernel.name for kernel in registry.others()]
        for found in shape["candidates"]:
            if "metal" in found["kernel"]:
                continue
            if found["kernel"] == "mlx-fp16" and "bfloat16" not in title:
                assert "it is for bfloat16" in found["reason"]  # mflux's latents are float32
                continue
            assert found["validation"]["ok"]
            assert found["validation"]["error"] > 0
            assert found["measured"][0]["seconds"] > 0
            assert found["reason"]
        assert shape["kernel"] in {"mlx", *names}
    assert report["cache"]["records"] >= 6
    assert report["cache"]["notes"] == []
    assert report["host"]["cpus"] == machine.available_cpus()


def test_doctor_sees_settings_that_slow_down(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_MFA_BACKEND", "mlx")
    session.start()
    status, text = run(capsys, "doctor")
    assert status == 1
    assert "1. Unset QWEN_MFA_BACKEND=mlx" in text
    monkeypatch.setenv("QWEN_MFA_BACKEND", "mlx-fp32")  # there is none
    session.start()
    status, text = run(capsys, "doctor")
    assert status == 2
    assert "BROKEN" in text


def test_doctor_on_a_broken_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = {"library": {"file": "bad.so", "sha256": ""}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setattr(library, "NATIVE", tmp_path)
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    library.outcome.forget()
    try:
        session.start()
        status, text = run(capsys, "doctor")
    finally:
        library.outcome.forget()
    assert status == 2
    assert "Repair the library" in text
    assert "bad.so" in text


def test_doctor_tells_of_a_wrong_kernel_and_of_failures(
    capsys: pytest.CaptureFixture[str],
    use_faulty: Faulty,
    quick: None,
) -> None:
    use_faulty("first-head-only")
    decisions.opened().keep_failure("cpu", "the device is gone")
    status, text = run(capsys, "doctor")
    assert status == 1
    assert "WRONG" in text
    assert "Report that kernel cpu is wrong on this machine (it is not used)" in text
    assert "the device is gone" in text


def test_doctor_forgets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    decisions.opened().keep_failure("cpu", "the device is gone")
    assert "the device is gone" in run(capsys, "doctor")[1]
    assert "the device is gone" not in run(capsys, "doctor", "--forget")[1]
    assert decisions.opened().failure("cpu") == ""


def test_doctor_notes_a_bad_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cold: Path
) -> None:
    cold.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    session.start()
    assert "note:" in doctor.as_text(doctor.examine())
    assert doctor.examine().status == 1


def test_doctor_tells_what_becomes_of_padding(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)
    monkeypatch.setattr(doctor, "IMAGES", {"1024 x 1024": 92})
    report = doctor.examine()
    lines = doctor.as_text(report).splitlines()
    (line,) = [x for x in lines if x.startswith("Padding at 1024 x 1024 (412 of 512")]
    assert re.search(r": bool \d+\.\d\d, (left out|masked); additive \d", line)
    assert len(line) <= 140
    found = doctor.as_json(report)["padding"]
    assert set(found) == {"bool", "additive"}
    assert found["bool"]["measured"]


@pytest.mark.parametrize("host", [MAC, M5_OLD_BUILD, LINUX], ids=["m2", "m5", "linux"])
def test_doctor_s_screen_for_other_machines(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    monkeypatch.setattr(machine, "read", lambda: host)
    text = doctor.as_text(doctor.examine())
    assert host.chip in text
    assert ("matrix units" in text) == (host.system == "macOS")


@pytest.mark.usefixtures("quick")
def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(
        capsys,
        *["explain", "1", "4", "100", "300", "64", "float32"],
        *["--mask", "additive", "--heads-kv", "2"],
    )
    assert status == 0
    for word in ("runs", "because", "candidate cpu", "candidate mlx-fp16", "this is float32"):
        assert word in text
    assert "H 4/2 Sq 100 Skv 300" in text
    status, text = run(capsys, *["explain", "1", "2", "4", "4", "64", "bfloat16", "--json"])
    report: dict[str, Any] = json.loads(text)
    assert report["kernel"] == "mlx"
    assert "tiny" in report["reason"]
    assert report["candidates"] == []


@pytest.mark.parametrize(
    "argv",
    [
        "explain 1 4 100 300 64 float99",
        "explain 0 4 100 300 64 float32",
        "explain 1 4 x 300 64 float32",
        "explain 1 4 100 300 64 float32 --mask bool --mask-shape 7",
        "bench dispatch --rounds 0",
        "bench",
    ],
)
def test_bad_usage(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv.split())
    assert caught.value.code not in (0, None)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("quick", "small_calls")
def test_bench_dispatch(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "bench", "dispatch", "--rounds", "1", "--json")
    assert status == 0
    lines = json.loads(text)
    assert len(lines) >= 8  # an import, floors, and calls
    for line in lines:
        assert line["direct"]["median"] > 0
        assert line["ratio"]["median"] > 0
    text = as_text([Line(**{**line, **spreads(line)}) for line in lines])
    assert "tiny call, not evaluated" in text


def spreads(line: dict[str, Any]) -> dict[str, Spread]:
    return {name: Spread(**x) for name, x in line.items() if isinstance(x, dict)}
