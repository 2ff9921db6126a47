#!/usr/bin/env -S python3 -I
"""Compile a Metal source for this machine: ``compile.py SOURCE [--check]`` prints a library's path.

Libraries are kept by what they were made from, in ``SOFTWARE_METAL_CACHE`` or a folder for
temporary files. ``SOFTWARE_METAL_CHECK=1`` is ``--check``: the memory checker is compiled in.
Needs clang++ (it comes with Swift) and nothing but Python's own library: isolated (-I), it does not
start whatever the environment of the process that calls it starts in each Python.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.standins.software_metal.translate import (  # noqa: E402 - a script, too
    TranslationError,
    translate,
)

# What nobody initialised holds a pattern (NaN, as a float), so that results show who reads it.
_UNWRITTEN = {"": "pattern", "pattern": "pattern", "zero": "zero"}
_MEMORY_INTRINSIC = re.compile(r"(@llvm\.mem(?:cpy|move|set)(?:\.inline)?)((?:\.p[0-9])+)")


class CompileError(Exception):
    """The compiler refused the source; the message is its own."""


def compile_source(source: str, *, check: bool = False, cache: Path | None = None) -> Path:
    """Return the library of ``source``, compiled unless it was before.

    Raises:
        CompileError: It is refused, or there is no compiler.

    """
    folder = cache or _cache()
    try:
        text = translate(source)
    except TranslationError as error:
        raise CompileError(str(error)) from error
    compiler = _compiler()
    flags = _flags()
    parts = [text, compiler, *flags, str(check), *(p.read_text() for p in _own_files())]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    library = folder / f"{name[:40]}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        (work / "kernel.cpp").write_text(text, encoding="utf-8")
        build = _checked if check else _plain
        objects = [build(compiler, flags, work), *_run_time(compiler, flags, folder, check=check)]
        made = work / "library.so"
        _call(
            [compiler, "-shared", "-Wl,-z,defs", *map(str, objects), "-o", str(made), "-ldl", "-lm"]
        )
        # Under its name at once or not at all: others may be compiling the same.
        made.rename(library)
    return library


def _own_files() -> list[Path]:
    return sorted([*(HERE / "include").iterdir(), *(HERE / "runtime").iterdir(), Path(__file__)])


def _cache() -> Path:
    named = os.environ.get("SOFTWARE_METAL_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"software-metal-{os.getuid()}"


def _compiler() -> str:
    found = shutil.which("clang++")
    if found is None:
        msg = "there is no clang++ (it comes with Swift)"
        raise CompileError(msg)
    return found


def _flags() -> list[str]:
    word = os.environ.get("SOFTWARE_METAL_POISON", "")
    if word not in _UNWRITTEN:
        msg = f"SOFTWARE_METAL_POISON={word} is neither pattern nor zero"
        raise CompileError(msg)
    return [
        "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off",
        f"-ftrivial-auto-var-init={_UNWRITTEN[word]}", *_native(), "-I", str(HERE / "include"),
    ]  # fmt: skip


def _native() -> list[str]:
    return ["-march=native"] if platform.machine() == "x86_64" else []


def _plain(compiler: str, flags: list[str], work: Path) -> Path:
    made = work / "kernel.o"
    _call([compiler, *flags, "-w", "-O2", "-c", str(work / "kernel.cpp"), "-o", str(made)])
    return made


def _checked(compiler: str, flags: list[str], work: Path) -> Path:
    """Compile with a hook at every access to memory.

    The compiler's pass leaves address spaces alone, so they are taken out between the language's
    front end, which needs them, and the pass.
    """
    text, made = work / "kernel.ll", work / "kernel.o"
    lines = ["-gline-tables-only", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize=thread"]
    front = ["-O1", "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm"]
    _call([compiler, *flags, "-w", *lines, *front, str(work / "kernel.cpp"), "-o", str(text)])
    text.write_text(_one_address_space(text.read_text(encoding="utf-8")), encoding="utf-8")
    _call(
        [
            compiler,
            "-w",
            "-fPIC",
            *lines,
            *flags[-4:-2],
            "-O1",
            "-c",
            "-x",
            "ir",
            str(text),
            "-o",
            str(made),
        ]
    )
    return made


def _one_address_space(text: str) -> str:
    text = re.sub(r" addrspace\([13]\)", "", text)
    text = text.replace("addrspacecast ", "bitcast ")
    # Intrinsics are named after their operands' address spaces, and may now be declared twice.
    text = _MEMORY_INTRINSIC.sub(lambda m: m[1] + re.sub(r"[0-9]", "0", m[2]), text)
    seen: set[str] = set()
    kept = []
    for line in text.splitlines():
        if line.startswith("declare ") and "@llvm.mem" in line:
            name = line.split("@", 1)[1].split("(", 1)[0]
            if name in seen:
                continue
            seen.add(name)
        kept.append(line)
    return "\n".join(kept) + "\n"


def _run_time(compiler: str, flags: list[str], folder: Path, *, check: bool) -> list[Path]:
    """Return the run time's objects, compiled once for all kernels."""
    objects = []
    for name in ("lanes", "execute", "check" if check else "absent"):
        text = "\0".join([compiler, *flags, name, *(p.read_text() for p in _own_files())])
        made = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:40]}.o"
        if not made.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                partial = Path(scratch) / "object.o"
                source = HERE / "runtime" / f"{name}.cpp"
                warnings = ["-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]
                _call([compiler, *flags, *warnings, "-O2", "-c", str(source), "-o", str(partial)])
                partial.rename(made)
        objects.append(made)
    return objects


def _call(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        msg = done.stderr.strip()[-4000:] or f"{command[0]} failed"
        raise CompileError(msg)


def main() -> int:
    """Compile the file that the command line names."""
    check = "--check" in sys.argv[2:] or os.environ.get("SOFTWARE_METAL_CHECK", "") not in ("", "0")
    try:
        source = Path(sys.argv[1]).read_text(encoding="utf-8")
        sys.stdout.write(f"{compile_source(source, check=check)}\n")
    except CompileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
