"""Whether a GPU ran a release: the judgement on a runner, and what the release notes say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.release import gpu
from build_tools.support.errors import ReleaseError
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / ".ci" / "gpu_selftest.py"
PARAVIRTUAL = "Apple Paravirtual device, applegpu, GPU family Apple0"


def report(result: str, *rows: tuple[str, str, str]) -> dict[str, Any]:
    """Return a report with one row for each subject, what was found, and the refusal."""
    checks = [{"subject": s, "found": f, "refusal": r} for s, f, r in rows]
    return {"result": result, "checks": checks, "reasons": [r for _, _, r in rows if r]}


MACOS = ("macOS", "15.7 (24G222)", "")
VIRTUAL = report("refused", MACOS, ("Metal device", PARAVIRTUAL, "it is not of GPU family Apple7"))
REAL = report(
    "passed", MACOS, ("Metal device", "Apple M3 Max, applegpu_g15s, GPU family Apple9", "")
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """STAND-IN for qwen-mfa: writes the report and ends with the status that the test chose."""
    path = tmp_path / "qwen-mfa"
    path.write_text(
        f"#!{sys.executable}\nimport os, shutil, sys\n"
        "assert sys.argv[1:4] == ['selftest', '--metal', '--report']\n"
        "if os.path.exists('given.json'): shutil.copy('given.json', sys.argv[4])\n"
        "sys.exit(int(os.environ['STATUS']))\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def judge(
    program: Path, status: int, given: dict[str, Any] | None, *more: str
) -> subprocess.CompletedProcess[str]:
    folder = program.parent
    if given is not None:
        (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *more, str(program), "report.json"],
        cwd=folder, check=False, capture_output=True, text=True, timeout=60,
        env=os.environ | {"STATUS": str(status), "GITHUB_STEP_SUMMARY": str(folder / "summary")},
    )  # fmt: skip


def test_a_pass_is_a_pass(program: Path) -> None:
    done = judge(program, 0, REAL)
    assert (done.returncode, "passed" in done.stdout) == (0, True)
    assert judge(program, 0, REAL, "--gpu").returncode == 0


def test_a_paravirtual_device_that_the_report_names_is_accepted(program: Path) -> None:
    done = judge(program, 3, VIRTUAL)
    assert done.returncode == 0
    assert PARAVIRTUAL in done.stdout
    assert "No GPU ran anything here" in (program.parent / "summary").read_text(encoding="utf-8")


def test_where_a_gpu_is_meant_to_be_no_refusal_is_accepted(program: Path) -> None:
    assert judge(program, 3, VIRTUAL, "--gpu").returncode == 1


@pytest.mark.parametrize(
    "given",
    [
        report("refused", MACOS, ("PyObjC", "none", "PyObjC is missing")),
        report("refused", ("Metal device", "Apple M1, g13g, GPU family Apple7", "no queue")),
        report("refused", ("Metal device", "none", "there is no Metal device")),
        report("refused", ("library", "none", "not there"), ("Metal device", PARAVIRTUAL, "no")),
        report("failed", ("Metal device", PARAVIRTUAL, "it is not of GPU family Apple7")),
        {**VIRTUAL, "reasons": ["something else"]},
        {"result": "refused"},
        None,
    ],
)
def test_any_other_refusal_fails(program: Path, given: dict[str, Any] | None) -> None:
    assert judge(program, 3, given).returncode == 1


@pytest.mark.parametrize("status", [1, 2, 134])
def test_a_failure_is_a_failure_whatever_the_device(program: Path, status: int) -> None:
    assert judge(program, status, VIRTUAL).returncode == status


def written(folder: Path, *reports: dict[str, Any]) -> Path:
    for number, each in enumerate(reports):
        path = folder / "reports" / f"report-{number}" / "report.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(each), encoding="utf-8")
    return folder / "reports"


def test_the_notes_name_the_gpus(tmp_path: Path) -> None:
    text = gpu.notes(written(tmp_path, VIRTUAL, REAL, REAL))
    assert text.startswith("### GPU\n")
    assert text.count("Apple M3 Max, applegpu_g15s, GPU family Apple9; macOS 15.7 (24G222)") == 1
    assert "Paravirtual" not in text


def test_the_notes_say_that_no_gpu_ran_it(tmp_path: Path) -> None:
    for reports in (None, tmp_path / "nothing", written(tmp_path, VIRTUAL, VIRTUAL)):
        assert "No GPU ran this release" in gpu.notes(reports)


@pytest.mark.parametrize("given", [{**REAL, "result": "failed"}, {}, {"checks": 3}])
def test_a_bad_report_stops_a_release(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError, match=r"report\.json"):
        gpu.notes(written(tmp_path, given))
