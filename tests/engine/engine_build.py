"""Compiling the engine's C sources for the tests, each time with other flags."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "swift_pkg" / "Sources" / "MFAFFI"
HERE = Path(__file__).resolve().parent

ISAS = ("amx", "avx512bf16", "avx512", "avx2", "neon", "generic")


def sources() -> list[str]:
    """Every C file of the engine."""
    return sorted(str(path) for path in ENGINE.rglob("*.c"))


def find_clang() -> str | None:
    """The Swift toolchain's clang, or another one on PATH."""
    swift = shutil.which("swift")
    if swift is not None:
        beside = Path(swift).resolve().parent / "clang"
        if beside.exists():
            return str(beside)
    return shutil.which("clang")


def run(command: list[str], *, timeout: float = 900, **environment: str) -> str:
    """Run to success and return the merged output; the assertion shows it otherwise."""
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{' '.join(command)} {environment}:\n{done.stdout[-4000:]}"
    return done.stdout


def compile_test(compiler: str, target: Path, *flags: str) -> Path:
    """Build ``engine_test`` together with the engine's sources into one program."""
    run(
        [
            compiler,
            *flags,
            f"-I{ENGINE / 'include'}",
            str(HERE / "engine_test.c"),
            *sources(),
            "-o",
            str(target),
            "-lm",
            "-lpthread",
        ]
    )
    return target


def links(compiler: str, folder: Path, *flags: str) -> bool:
    """Whether the compiler can build a program with these flags (a run-time library is there)."""
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    probe = [compiler, *flags, str(source), "-o", str(folder / "probe")]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def usable_isas(program: Path) -> list[str]:
    """The instruction sets that this machine has kernels for."""
    found = []
    for isa in ISAS:
        done = subprocess.run(
            [str(program), "forward", "1", "1"],
            check=False,
            capture_output=True,
            env={**os.environ, "QWEN_MFA_ISA": isa},
        )
        if done.returncode == 0:
            found.append(isa)
    return found
