"""A miniature upstream served over git:// on loopback, and what the tests need around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from build_tools.__main__ import main
from build_tools.native import standins
from build_tools.release import files, project
from build_tools.support import process
from build_tools.support.paths import ROOT
from tests.build_tools.rehearsal import distributions, standin
from tests.standins.servers import GitServer
from tests.standins.upstream.repositories import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from build_tools.native.standins import Standins
    from build_tools.release.project import Project

EXPECT_SWIFT = "QWEN_MFA_EXPECT_SWIFT"
# `make wheel` and one test build isolated; the others have the build requirements at hand.
NOT_ISOLATED = ("--no-isolation", "--skip-dependency-check")


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
def apple(swift: str, shared: Path) -> Standins:
    """Return the stand-in Apple modules, built once for all test workers."""
    if sys.platform != "linux":
        pytest.skip("the stand-ins replace Apple's modules where there are none")
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


# Distributions of this tree, each built once for all test workers


@pytest.fixture(scope="session")
def subject() -> Project:
    return project.load()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers of one run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def dist(shared: Path, subject: Project) -> Path:
    """The files of a release as this machine can make them; only the stand-ins are no real ones.

    The library-bearing wheel of this machine is a stand-in too: test_wheel tests the real one.
    """
    out = shared / "release-dist"
    with FileLock(shared / "release-dist.lock"):
        if not out.exists():
            _build(shared / "release-work", out, subject)
    return out


def _build(work: Path, out: Path, subject: Project) -> None:
    tree = work / "tree"
    distributions.copy(subject, tree)
    stage = work / "dist"
    stage.mkdir()
    for what in ("--sdist", "--wheel"):
        made = distributions.build(tree, work / what, [what, *NOT_ISOLATED], "none")
        path = made.replace(stage / made.name)
    for target in (standin.MACOS, *standin.LINUX.values()):
        standin.make(path, target, stage, project=subject)
    assert len(files.distributions(stage)) == 5
    stage.rename(out)


@pytest.fixture
def pure(dist: Path) -> Path:
    """The wheel without a library."""
    (found,) = dist.glob("*-any.whl")
    return found


@pytest.fixture(scope="session")
def installable(root: Path) -> Path:
    """The wheel that `make install` built and installed."""
    wheels = list((root / "dist").glob("qwen_mfa-*.whl"))
    assert len(wheels) == 1, "run `make wheel` first"
    return wheels[0]


@pytest.fixture(scope="session")
def reproduced(shared: Path) -> Path:
    """What `reproduce` keeps of HEAD built by cc, twice: clones, logs and wheels."""
    if shutil.which("cc") is None or shutil.which("git") is None:
        pytest.skip("needs cc and git")
    if not (ROOT / ".git").exists():
        pytest.skip("a source distribution has no history to clone")
    kept = shared / "reproduced"
    with FileLock(shared / "reproduced.lock"):
        if not kept.exists():
            # `make reproduce` installs the build tools anew each time, most of its time.
            work = shared / "reproducing"
            command = ["reproduce", "--toolchain", "cc", "--no-isolation", "--keep", str(work)]
            assert main(command) == 0
            work.rename(kept)
    return kept / "cc"
