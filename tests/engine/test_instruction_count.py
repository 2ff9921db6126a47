"""A gate against lost speed that no noise can disturb: instructions of small fixed problems.

The figure is instructions per vector multiply-add that the two products need at least (8 lanes).
It depends on the compiler, so the recorded values are those of gcc 12 at -O3, with a margin.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import OPTIMISED, run

if TYPE_CHECKING:
    from tests.engine.engine_build import Builder

FP32, BF16 = 2, 1
MARGIN = 1.05

# (queries, keys, head_dim, precision, causal) -> recorded instructions per multiply-add
RECORDED = {
    (192, 320, 128, FP32, 0): 2.51,
    (192, 320, 128, BF16, 0): 2.53,
    (192, 192, 128, FP32, 1): 1.52,
    (192, 320, 32, FP32, 0): 3.03,
    (64, 64, 128, FP32, 0): 3.01,
    (16, 16, 128, BF16, 0): 5.90,
    (1, 1024, 128, BF16, 0): 6.53,
}


@pytest.fixture(scope="module")
def program(builder: Builder, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = subprocess.run(
        [gcc, "-dumpfullversion"], check=False, capture_output=True, text=True
    ).stdout
    if not version.startswith("12."):
        pytest.skip("the counts are recorded for gcc 12")
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    target = tmp_path_factory.mktemp("count") / "instruction_count"
    return builder.link(gcc, "instruction_count.c", target, *OPTIMISED)


def instructions(program: Path, problem: tuple[int, ...], folder: Path) -> int:
    """Instructions inside the attention call, as callgrind counts them."""
    output = run(
        [
            "valgrind",
            "--tool=callgrind",
            "--toggle-collect=mfa_portable_attention",
            f"--callgrind-out-file={folder / 'out'}",
            str(program),
            *map(str, problem),
        ],
        QWEN_MFA_ISA="avx2",
    )
    found = re.search(r"Collected\s*:\s*(\d+)", output)
    assert found is not None, output
    return int(found.group(1))


@pytest.mark.parametrize("problem", RECORDED)
def test_no_more_instructions_than_recorded(
    program: Path, problem: tuple[int, int, int, int, int], tmp_path: Path
) -> None:
    flags = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    if "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    queries, keys, dim, *_ = problem
    needed = 2 * queries * keys * dim / 8
    ratio = instructions(program, problem, tmp_path) / needed
    assert ratio <= RECORDED[problem] * MARGIN, f"{ratio:.3f} instructions per multiply-add"
    assert ratio >= RECORDED[problem] / MARGIN, f"{ratio:.3f}: faster now, record the new figure"
