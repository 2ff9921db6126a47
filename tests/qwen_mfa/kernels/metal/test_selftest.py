"""``qwen-mfa selftest --metal``, over the stand-ins and where there is no Metal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from qwen_mfa.cli import main, selftest_metal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = [pytest.mark.cpu, pytest.mark.validation]


def report_of(tmp_path: Path, *options: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    path = tmp_path / "report.json"
    status = main(["selftest", "--metal", "--report", str(path), *options])
    assert [x.name for x in tmp_path.iterdir() if "report" in x.name] == ["report.json"]
    return status, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.platform == "darwin", reason="this is where there is no Metal")
def test_elsewhere_it_refuses_and_still_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = report_of(tmp_path)
    assert status == 3
    assert report["result"] == "refused"
    assert report["reasons"] == [f"Metal needs macOS, and this is {sys.platform}"]
    assert report["sections"] == {}
    assert "REFUSED" in capsys.readouterr().out


def test_everything_is_run_and_reported(
    mac: StandinMac,
    children: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    children("rejects_asm=1 prints=1")
    status, report = report_of(tmp_path, "--quick")
    assert report["reasons"] == []
    assert (status, report["result"], report["quick"]) == (0, "passed", True)
    validations = report["sections"]["validation"]["validations"]
    # fp32: 3 dtypes of (3 + 1 + 3 + 3) variants; fp16: bfloat16 alone.
    assert [p["kernel"] for p in validations].count("metal") == 30
    assert [p["kernel"] for p in validations].count("metal-low") == 10
    assert all(p["ok"] and 0 < p["margin"] <= 1 for p in validations)
    origins = report["sections"]["validation"]["origins"]
    assert {(o["place"], o["variant"]) for o in origins} == {("runtime", "plain")}
    assert report["sections"]["leak"]["calls"] == 300
    rows = report["sections"]["timing"]["rows"]
    assert {row["kernel"] for row in rows} == {"metal", "metal-low"}
    assert all(row["seconds"] > 0 and row["seconds_mlx"] > 0 for row in rows)
    assert report["host"]["mlx"]
    assert any("Apple M3 Max" in check["found"] for check in report["checks"])
    text = capsys.readouterr().out
    assert "40 of 40 variants hold" in text
    assert "PASSED" in text
    del mac


@pytest.mark.parametrize(
    ("switches", "part"),
    [("abort_on_error=1 encode_code=4", "its process ended (signal 6"),
     ("gpu_error=1", "GPU Timeout")],
)  # fmt: skip
def test_failures_are_reported(
    mac: StandinMac,
    children: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    switches: str,
    part: str,
) -> None:
    children(switches)
    monkeypatch.setattr(selftest_metal, "SECTIONS", {"leak": 60.0, "validation": 60.0})
    status, report = report_of(tmp_path, "--quick")
    assert (status, report["result"]) == (1, "failed")
    assert part in " ".join(report["reasons"])
    del mac


def test_a_section_that_hangs_is_ended(
    mac: StandinMac, children: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    children("compile_ms=20000")
    section = selftest_metal.in_child("leak", quick=True, limit=3)
    assert section["failures"] == ["leak: no end within 3 s"]
    del mac, monkeypatch


def test_a_leak_is_seen(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_mfa.cli import metal_sections
    from qwen_mfa.kernels.metal import execute

    real, kept = execute.attention, []

    def leaking(*arguments: object) -> object:
        kept.append(bytearray(b"x" * (1 << 20)))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "attention", leaking)
    assert "bytes more after 300 calls" in metal_sections.leak(quick=True)["failures"][0]
    del mac


def test_doctor_says_where_shaders_come_from(
    mac: StandinMac, children: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_mfa.cli import doctor

    real = selftest_metal.in_child
    # Attention in the stand-in's plain loops takes long: the section's own small shapes.
    monkeypatch.setattr(
        selftest_metal, "in_child", lambda name, **o: real(name, **{**o, "quick": True})
    )
    children("rejects_asm=1")
    lines = doctor._shaders()
    # bfloat16 with both kernels, float16 with the accurate one alone.
    assert len(lines) == 3
    assert all("(plain): macOS's own compiler" in line for line in lines)
    children("rejects_asm=1 rejects_plain=1")
    assert "Install a wheel with a shader pack" in doctor._shaders()[-1]
    del mac
