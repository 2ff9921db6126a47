"""Programs that several tests of this folder share."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine import engine_build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> engine_build.Builder:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return engine_build.Builder(shared / "engine")


@pytest.fixture(scope="session", params=["gcc", "clang"])
def compiler(request: pytest.FixtureRequest) -> str:
    path = shutil.which("gcc") if request.param == "gcc" else engine_build.find_clang()
    if path is None:
        pytest.skip(f"{request.param} is not installed")
    return path


@pytest.fixture(scope="session")
def gcc() -> str:
    path = shutil.which("gcc") or shutil.which("cc")
    if path is None:
        pytest.skip("there is no C compiler")
    return path


@pytest.fixture(scope="session")
def engine_test(
    builder: engine_build.Builder, gcc: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The test program, optimised as it ships."""
    target = tmp_path_factory.mktemp("native") / "engine_test"
    return builder.link(gcc, "engine_test.c", target, *engine_build.OPTIMISED)
