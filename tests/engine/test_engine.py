"""The engine against a naive double-precision reference, on every usable instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import ISAS, run, usable_isas

if TYPE_CHECKING:
    from pathlib import Path

MODES = {
    "random": ("random", "20260", "250"),
    "bfloat16": ("random", "31", "150", "1"),
    "forward": ("forward", "5", "150"),
    "special": ("special",),
    "errors": ("errors",),
    "state": ("state",),
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


def test_a_machine_that_refuses_the_tile_unit_computes_without(engine_test: Path) -> None:
    """Linux refuses it where a thread's stack for signals could not hold its state."""
    run([str(engine_test), "permission"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("QWEN_MFA_ISA", value) for value in ("sse9", "AVX2", "generic ", "xyzzy")),
        *(("QWEN_MFA_NUM_THREADS", value) for value in ("0", "-1", "two", "9" * 20)),
    ],
)
def test_an_environment_that_cannot_be_followed_is_told(
    engine_test: Path, name: str, value: str
) -> None:
    command = [str(engine_test), "environment", name]
    if name == "QWEN_MFA_ISA":
        run(command, QWEN_MFA_ISA=value)
    else:
        run(command, QWEN_MFA_NUM_THREADS=value)


def test_the_end_of_the_process_does_not_wait_for_a_call(engine_test: Path) -> None:
    """``exit`` while another thread's call takes minutes: helpers return from their tasks."""
    run([str(engine_test), "exit"], timeout=60)
