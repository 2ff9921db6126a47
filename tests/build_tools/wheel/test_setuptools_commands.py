"""The library is built once a distribution, and only where a wheel is made; the audit decides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from build_tools.native import engine
from build_tools.wheel.setuptools_commands import BdistWheel, NativeDistribution, options

if TYPE_CHECKING:
    from build_tools.native.engine import Native


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the builds, and make none."""
    made: list[str] = []

    def build() -> Native | None:
        made.append("build")
        return engine.Native(library=Path("libMFAFFI.so"), files={}, facts={})

    monkeypatch.setattr(engine, "build", build)
    return made


def test_the_library_is_built_once(builds: list[str]) -> None:
    distribution = NativeDistribution({"cmdclass": {"bdist_wheel": BdistWheel}})
    distribution.get_command_obj("bdist_wheel").ensure_finalized()
    assert distribution.has_ext_modules()
    assert distribution.native is distribution.native
    assert builds == ["build"]


def test_a_source_distribution_builds_no_library(builds: list[str]) -> None:
    assert not NativeDistribution().has_ext_modules()
    assert builds == []


def test_the_wheel_is_handed_to_what_setup_py_gives() -> None:
    seen: list[Path] = []
    made = options(check=seen.append)
    command = made["cmdclass"]["bdist_wheel"](made["distclass"]())
    command.check(Path("a.whl"))
    assert seen == [Path("a.whl")]
