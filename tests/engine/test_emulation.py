"""The kernels of other processors, under emulation: NEON, x86-64 without AVX, and tiles."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import (
    ENGINE,
    HERE,
    OPTIMISED,
    STAND_IN_FOR_AMX,
    run,
    sources,
    usable_isas,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine_build import Builder

# What older processors run natively elsewhere: enough to meet an instruction that they lack.
FEW = [("random", "11", "12"), ("forward", "11", "25")]
MODES = [("random", "11", "25"), ("forward", "11", "25"), ("special",), ("errors",)]


@pytest.fixture(scope="module")
def neon_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The test program for 64-bit ARM, and how to run it here."""
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    target = tmp_path_factory.mktemp("neon") / "engine_test"
    if shutil.which("aarch64-linux-gnu-gcc") is not None:
        compiler = ["aarch64-linux-gnu-gcc"]
    elif importlib.util.find_spec("ziglang") is not None:
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    else:
        pytest.skip("no compiler for 64-bit ARM (the Python package ziglang has one)")
    run(
        [
            *compiler,
            "-static",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{ENGINE / 'include'}",
            str(HERE / "engine_test.c"),
            *sources(),
            "-o",
            str(target),
            "-lm",
            "-lpthread",
        ]
    )
    return [emulator, str(target)]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0])
def test_neon(neon_program: list[str], mode: tuple[str, ...]) -> None:
    assert "isa=neon " in run([*neon_program, *mode])


@pytest.fixture(scope="module")
def program(builder: Builder, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, which allows for what QEMU does otherwise than processors."""
    target = tmp_path_factory.mktemp("older") / "engine_test"
    flag = "-DEMULATOR_FLUSHES_HALVES"
    return builder.link(gcc, "engine_test.c", target, *OPTIMISED, extra=flag)


@pytest.mark.parametrize("processor", ["core2duo", "Nehalem", "Haswell"])
def test_older_processors(program: Path, processor: str) -> None:
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user)")
    expected = "avx2" if processor == "Haswell" else "generic"
    for mode in FEW:
        assert f"isa={expected} " in run([emulator, "-cpu", processor, str(program), *mode])


@pytest.fixture(scope="module")
def tile_program(builder: Builder, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program with the tile unit computed in C: no emulator has AMX."""
    target = tmp_path_factory.mktemp("tiles") / "engine_test"
    built = builder.link(gcc, "engine_test.c", target, *OPTIMISED, STAND_IN_FOR_AMX)
    if "amx" not in usable_isas(built):
        pytest.skip("this processor lacks what goes with AMX: AVX-512 and its BF16")
    return built


@pytest.mark.parametrize("mode", [*MODES, ("random", "31", "60", "1")], ids="-".join)
def test_tiles(tile_program: Path, mode: tuple[str, ...]) -> None:
    assert "isa=amx " in run([str(tile_program), *mode], QWEN_MFA_ISA="amx")
