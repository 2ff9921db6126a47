"""The engine against a naive double-precision reference, on every usable instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import ISAS, run, usable_isas

if TYPE_CHECKING:
    from pathlib import Path

MODES = {
    "random": ("random", "20260", "250"),
    "forward": ("forward", "5", "150"),
    "special": ("special",),
    "errors": ("errors",),
    "threads": ("threads",),
}


@pytest.fixture(scope="session")
def isas(engine_test: Path) -> list[str]:
    return usable_isas(engine_test)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_the_reference(engine_test: Path, isas: list[str], isa: str, mode: str) -> None:
    if isa not in isas:
        pytest.skip(f"this processor cannot run the {isa} kernels")
    assert f"isa={isa} " in run([str(engine_test), *MODES[mode]], QWEN_MFA_ISA=isa)


def test_generic_kernels_run_everywhere(isas: list[str]) -> None:
    assert "generic" in isas
