"""Real distributions of this tree, and stand-ins for the machines that this one is not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from build_tools.release import files, project, rehearsal, standin

if TYPE_CHECKING:
    from pathlib import Path

    from build_tools.release.project import Project


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

    The library-bearing wheel of this machine is a stand-in too: tests/wheel tests the real one.
    """
    out = shared / "release-dist"
    with FileLock(shared / "release-dist.lock"):
        if not out.exists():
            _build(shared / "release-work", out, subject)
    return out


def _build(work: Path, out: Path, subject: Project) -> None:
    # A copy: the tree's own build folder may be in use by another test.
    tree = work / "tree"
    shutil.copytree(subject.root, tree, ignore=shutil.ignore_patterns(*rehearsal.NOT_COPIED))
    stage = work / "dist"
    stage.mkdir()
    for what in ("--sdist", "--wheel"):
        made = rehearsal.front_end(tree, work / what, [what], "none")
        path = made.replace(stage / made.name)
    for target in (standin.MACOS, *standin.LINUX.values()):
        standin.make(path, target, stage, project=subject)
    assert len(files.distributions(stage)) == 5
    stage.rename(out)


@pytest.fixture
def pure(dist: Path) -> Path:
    (found,) = dist.glob("*-any.whl")
    return found
