"""Where the suite runs on macOS: with the portable engine, on MLX's CPU device."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import conftest

if TYPE_CHECKING:
    from pathlib import Path

MLX = "cpu, default = 'the CPU', 'the GPU'\ndef set_default_device(device):\n  global default\n"
MLX += "  default = device\n"


def default_device(folder: Path) -> str:
    """Return what a child process finds in an MLX whose default device is the GPU."""
    (folder / "mlx").mkdir(exist_ok=True)
    (folder / "mlx" / "core.py").write_text(MLX, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import mlx.core as mx; print(mx.default)"],
        env=os.environ | {"PYTHONPATH": f"{conftest.CPU_DEVICE}{os.pathsep}{folder}"},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def test_children_compute_on_the_cpu(tmp_path: Path) -> None:
    assert default_device(tmp_path) == "the CPU"


def test_failures_on_a_gpu_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = pytest.TestReport(
        "tests/x.py::test_y", ("x.py", 1, "y"), {}, "failed", "traceback\nE  a reason", "call"
    )
    conftest.SaysAtOnce().pytest_runtest_logreport(report)
    assert capsys.readouterr().err == "\nFAILED tests/x.py::test_y - E  a reason\n"
    report.outcome = "passed"
    conftest.SaysAtOnce().pytest_runtest_logreport(report)
    assert not capsys.readouterr().err


def test_the_real_mlx_is_found_as_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mlx.core as mx; print(mx.default_device().type)"],
        env=os.environ | {"PYTHONPATH": str(conftest.CPU_DEVICE)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "cpu" in done.stdout


def test_on_macos_the_suite_builds_the_engine_that_it_can_test(root: Path) -> None:
    def plan(system: str) -> str:
        return subprocess.run(
            ["make", "--dry-run", "--print-data-base", f"SYSTEM={system}", "pytest"],
            cwd=root, check=False, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    assert "QWEN_MFA_ENGINE := portable" in plan("Darwin")
    assert "QWEN_MFA_ENGINE := portable" not in plan("Linux")
