"""What several folders start from: no history, one kernel, or a library with a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.kernels import cpu
from qwen_mfa.native import library
from qwen_mfa.selection import session
from qwen_mfa.tuning import measure
from tests.standins import faulty

if TYPE_CHECKING:
    from pathlib import Path

    from qwen_mfa.kernels.base import Kernel
    from qwen_mfa.problem import Problem

Faulty = Callable[[str], None]


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> Path:
    """Return the folder of an empty cache; nothing is forced."""
    for variable in ("QWEN_MFA_BACKEND", "QWEN_MFA_TUNE", "QWEN_MFA_KEEP_PADDING"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path / "cache"))
    session.start()
    telemetry.start()
    return tmp_path / "cache"


@pytest.fixture
def native_kernel(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> None:
    """Force the portable engine, since MLX's kernel is faster for the small and few."""
    monkeypatch.setenv("QWEN_MFA_BACKEND", "cpu")
    session.start()


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.cpu), "mlx"])
def each_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run with the native kernel and with MLX's, whichever is faster on this machine now."""
    if request.param == "cpu" and not library.load().is_portable:
        pytest.skip("the embedded library is not the portable engine")
    with qwen_mfa.use(request.param):
        yield


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    place = folder / "faulty"
    with FileLock(folder / "faulty.lock"):
        if not (place / "libfaulty.so").exists():
            place.mkdir(exist_ok=True)
            faulty.build(place)
    return place / "libfaulty.so"


@pytest.fixture
def use_faulty(faulty_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Put the stand-in in the place of the library, with a fault."""

    def install(fault: str) -> None:
        monkeypatch.setenv("QWEN_MFA_LIBRARY", str(faulty_library))
        monkeypatch.setenv("QWEN_MFA_FAULT", fault)
        library.outcome.forget()
        session.start()

    yield install
    library.outcome.forget()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Problem]]:
    """Return what is measured from here on; every kernel is found to be twice as fast as MLX."""
    log: list[tuple[str, Problem]] = []

    def doubled(kernel: Kernel, ends: tuple[Problem, Problem]) -> list[measure.Sample]:
        log.append((kernel.name, ends[0]))
        gain = 0.7 if kernel is cpu else 0.1
        return [
            measure.Sample(
                problem="simulated",
                seconds=0.5,
                seconds_mlx=1.0,
                gain=gain,
                noise=0.02,
                pairs=5,
                reduced=False,
            )
        ]

    monkeypatch.setattr(measure, "measure", doubled)
    return log


def python(
    code: str, *words: str, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with arguments in a new process, with our environment and ``env``."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
