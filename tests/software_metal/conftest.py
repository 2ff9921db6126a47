"""What these tests share: a cache of compiled kernels, and a child that runs one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from build_tools.support.paths import ROOT
from tests.software_metal.attention import Case, Outcome, source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep compiled kernels together, for all workers of this run."""
    if shutil.which("clang++") is None:
        if os.environ.get("QWEN_MFA_EXPECT_SWIFT"):
            pytest.fail("QWEN_MFA_EXPECT_SWIFT is set and there is no clang++, which Swift brings")
        pytest.skip("no clang++ (it comes with Swift): address spaces are its extension")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "software-metal"
    os.environ["SOFTWARE_METAL_CACHE"] = str(folder)
    return folder


@pytest.fixture
def attend(kernel_cache: Path) -> Callable[..., Outcome]:
    """Run a case in a process of its own; its end raises `subprocess.CalledProcessError`."""

    def run(case: Case, text: str | None = None, **env: str) -> Outcome:
        request = {"case": asdict(case), "source": text or source(case)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.software_metal.attention"],
            cwd=ROOT,
            env=os.environ | {"SOFTWARE_METAL_CACHE": str(kernel_cache)} | env,
            input=json.dumps(request),
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        found = json.loads(done.stdout)
        return Outcome(error=found["error"], same=found["same"], findings=tuple(found["findings"]))

    return run
