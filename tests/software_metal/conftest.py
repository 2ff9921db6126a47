"""What these tests share: a cache of compiled kernels, and a child that runs one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.support.paths import ROOT
from tests.software_metal.attention import Case, Outcome, source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep compiled kernels together, for all workers of this run and test_simulate.py."""
    if shutil.which("clang++") is None:
        if os.environ.get("QWEN_MFA_EXPECT_SWIFT"):
            pytest.fail("QWEN_MFA_EXPECT_SWIFT is set and there is no clang++, which Swift brings")
        pytest.skip("no clang++ (it comes with Swift): address spaces are its extension")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "software-metal" / "kernels"
    os.environ["SOFTWARE_METAL_CACHE"] = str(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a kernel's process ended.

    Attributes:
        status: Exit status, or less than zero: the signal.
        said: What it wrote to standard error.
        answer: What it computed.

    """

    status: int
    said: str
    answer: Any


@pytest.fixture(scope="session")
def apart(kernel_cache: Path) -> Iterator[Callable[[dict[str, Any]], Ended]]:
    """Run a request of `tests.software_metal.apart` in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.software_metal.apart"],
        cwd=ROOT,
        env=os.environ | {"SOFTWARE_METAL_CACHE": str(kernel_cache), "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def run(request: dict[str, Any]) -> Ended:
            print(json.dumps(request), file=requests, flush=True)
            return Ended(**json.loads(answers.readline()))

        yield run
        requests.close()


class Ends(Exception):  # noqa: N818 - not a mistake of the test
    """A kernel ended its process; the message is what it said."""


@pytest.fixture
def attend(apart: Callable[[dict[str, Any]], Ended]) -> Callable[..., Outcome]:
    """Run a case in a process of its own; its end raises `Ends`."""

    def run(case: Case, text: str | None = None) -> Outcome:
        ended = apart({"case": asdict(case), "source": text or source(case)})
        if ended.status != 0:
            raise Ends(ended.said)
        findings = tuple(ended.answer["findings"])
        return Outcome(**{**ended.answer, "findings": findings})

    return run
