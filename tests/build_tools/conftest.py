"""A miniature upstream served over git:// on loopback, and what the tests need around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from build_tools.native import standins
from build_tools.support import process
from build_tools.support.paths import ROOT
from tests.standins.servers import GitServer
from tests.standins.upstream.repositories import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from build_tools.native.standins import Standins

EXPECT_SWIFT = "QWEN_MFA_EXPECT_SWIFT"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Serve a folder of bare repositories."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    with GitServer(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="session")
def upstream(server: GitServer, tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """Return the miniature, committed and served."""
    return Upstream(server, tmp_path_factory.mktemp("miniature"))


@pytest.fixture(autouse=True)
def log(tmp_path: Path) -> Iterator[Path]:
    """Keep what a test's child processes print away from the logs of this tree."""
    with process.logging_to(tmp_path / "test.log") as path:
        yield path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def swift() -> str:
    """Return the Swift compiler driver, which the tests of the real chain need."""
    found = shutil.which("swift")
    if found is None:
        if os.environ.get(EXPECT_SWIFT):
            pytest.fail(f"{EXPECT_SWIFT} is set and there is no Swift")
        pytest.skip("no Swift toolchain on this machine")
    return found


@pytest.fixture(scope="session")
def apple(swift: str, tmp_path_factory: pytest.TempPathFactory) -> Standins:
    """Return the stand-in Apple modules, built once for all test workers."""
    if sys.platform != "linux":
        pytest.skip("the stand-ins replace Apple's modules where there are none")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "standins.lock"):
        return standins.build(shared / "standins")


class Tools:
    """Run ``python -m build_tools`` as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "build_tools", *map(str, arguments)]

    def run(
        self, *arguments: object, status: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments, "--log", self.folder / "command.log"),
            cwd=ROOT,
            env=os.environ | env,
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)
