"""Compiling the engine's C sources for the tests, each time with other flags."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

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


# As the library ships, but that programs, too, are linked from it.
OPTIMISED = ("-O3", "-fPIC", "-fvisibility=hidden")
# AMX computed in C: slowly, anywhere, and where sanitizers see what it reads.
STAND_IN_FOR_AMX = f'-DMFA_STAND_IN_FOR_AMX="{HERE / "stand_in_for_amx.h"}"'
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wstrict-prototypes")


class Builder:
    """Compiles the engine once for each compiler and flags, whichever test worker asks first."""

    def __init__(self, folder: Path) -> None:
        """Keep objects in a folder that all workers of this run share."""
        self.folder = folder

    def objects(self, compiler: str, *flags: str) -> list[str]:
        """Object files of the engine's sources."""
        return self._compiled(compiler, flags)[0]

    def warnings(self, compiler: str, *flags: str) -> str:
        """What the compiler said about the engine's sources."""
        return self._compiled(compiler, flags)[1]

    def link(self, compiler: str, source: str, target: Path, *flags: str, extra: str = "") -> Path:
        """Build one of this folder's programs, with the engine in it.

        ``extra`` is a flag for the program alone.
        """
        headers = [f"-I{ENGINE / folder}" for folder in ("include", "driver")]
        program = [*flags, *([extra] if extra else []), *headers, str(HERE / source)]
        libraries = ["-o", str(target), "-lm", "-lpthread"]
        run([compiler, *program, *self.objects(compiler, *flags), *libraries])
        return target

    def _compiled(self, compiler: str, flags: tuple[str, ...]) -> tuple[list[str], str]:
        key = hashlib.sha256("\0".join((compiler, *flags)).encode()).hexdigest()[:16]
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        found = {source: folder / f"{number}.o" for number, source in enumerate(sources())}
        said = folder / "said"
        with FileLock(folder / "lock"):
            if not said.exists():
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    outputs = list(
                        pool.map(lambda item: compile_one(compiler, flags, *item), found.items())
                    )
                said.write_text("".join(outputs), encoding="utf-8")
        return [str(path) for path in found.values()], said.read_text(encoding="utf-8")


def compile_one(compiler: str, flags: tuple[str, ...], source: str, target: Path) -> str:
    """Compile one of the engine's files; what the compiler said."""
    command = [compiler, *STRICT, *flags, f"-I{ENGINE / 'include'}", "-c", source]
    return run([*command, "-o", str(target)])


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
