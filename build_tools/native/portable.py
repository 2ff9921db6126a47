"""Builds the portable engine: ``swift build -c release``, or the same C sources with ``cc``.

The result is cached under ``build/native`` by a key over everything that goes into it.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from build_tools.binaries.relocate import elf, macho
from build_tools.native import cache
from build_tools.native.cache import Built
from build_tools.support import files, process
from build_tools.support.console import say, step
from build_tools.support.errors import ToolError
from build_tools.support.paths import ROOT
from build_tools.support.process import capture

PACKAGE = ROOT / "swift_pkg"
SOURCES = PACKAGE / "Sources" / "MFAFFI"
SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch
SUFFIX = ".dylib" if SYSTEM == "darwin" else ".so"
LIBRARY = f"libMFAFFI{SUFFIX}"

# auto: Swift where there is one, else cc, else none. The others insist.
CHOICE = "QWEN_MFA_NATIVE"
CHOICES = ("auto", "swift", "cc", "none")

EXPORTS = "exports.map"
STEPS = ("binaries",)
C_FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


def choose_toolchain(environ: Mapping[str, str] = os.environ) -> str:
    """Return ``"swift"``, ``"cc"`` or ``"none"`` according to ``QWEN_MFA_NATIVE`` and the machine.

    Raises:
        ToolError: The variable has an unknown value, or asks for a tool that is missing.

    """
    choice = environ.get(CHOICE, "auto")
    if choice not in CHOICES:
        msg = f"{CHOICE}={choice!r} is not one of {', '.join(CHOICES)}"
        raise ToolError(msg)
    have = {"swift": _works("swift", "--version"), "cc": _works("cc", "--version")}
    if choice == "auto":
        return next((tool for tool, found in have.items() if found), "none")
    if choice != "none" and not have[choice]:
        msg = f"{CHOICE}={choice}, but `{choice} --version` does not run. Install it, or unset it."
        raise ToolError(msg)
    return choice


def build(*, work: Path | None = None, toolchain: str | None = None) -> Built | None:
    """Build the engine, or take it from the cache; ``None`` where there is no toolchain.

    Args:
        work: Folder for builds, and the cache; ``build/native`` of the repository if None.
        toolchain: ``"swift"``, ``"cc"`` or ``"none"``; chosen by `choose_toolchain` if None.

    Raises:
        ToolError: The compiler failed (with its own last lines), or the library is not one that
            may be embedded.

    """
    toolchain = toolchain or choose_toolchain()
    if toolchain == "none":
        say("No Swift toolchain and no C compiler: building the MLX-only wheel.")
        return None
    if toolchain == "cc":
        say("No Swift toolchain used: compiling the same C sources with cc.")
    work = work or ROOT / "build" / "native"
    inputs = {
        "engine": "portable",
        "built_by": _title(toolchain),
        "compiler": compiler(toolchain),
        "flags": _swift_flags("<package>") if toolchain == "swift" else _cc_flags("<package>"),
        "sources": source_hashes(),
    }
    key = cache.key({**inputs, "steps": _steps(), "machine": platform.machine()})

    def make(stage: Path) -> tuple[Path, dict[str, Any]]:
        library = stage / LIBRARY
        with (
            tempfile.TemporaryDirectory(prefix=".building-", dir=stage.parent) as temporary,
            step(f"Building the native library ({_title(toolchain)})") as detail,
        ):
            compile_with = _swift_build if toolchain == "swift" else _cc_build
            compile_with(Path(temporary), library, detail)
            if SYSTEM == "linux":
                elf.relocate(library)
            else:
                macho.embed(library, architecture=platform.machine())
        return library, inputs

    return cache.obtain(work / f"{toolchain}-{key}", make)


def source_hashes() -> dict[str, str]:
    """Return the SHA-256 of every file that the build reads, by path relative to the repository."""
    found = [
        PACKAGE / "Package.swift",
        PACKAGE / EXPORTS,
        *(p for p in SOURCES.rglob("*") if p.is_file()),
    ]
    return {p.relative_to(ROOT).as_posix(): files.sha256(p) for p in sorted(found)}


def _steps() -> dict[str, str]:
    """Return the SHA-256 of the modules that shape the library after the compiler."""
    here = Path(__file__).resolve().parent
    found = [Path(__file__), *(p for f in STEPS for p in (here.parent / f).rglob("*.py"))]
    return {p.relative_to(here.parent).as_posix(): files.sha256(p) for p in sorted(found)}


def _swift_flags(package: str) -> list[str]:
    """Flags for a library that stands alone: no toolchain rpath, no Swift runtime, no paths."""
    linux = [
        "-Xswiftc", "-nostartfiles",
        "-Xswiftc", "-no-toolchain-stdlib-rpath",
        "-Xlinker", f"-soname={LIBRARY}",
        "-Xlinker", f"--version-script={package}/{EXPORTS}",
        "-Xlinker", "-z", "-Xlinker", "relro", "-Xlinker", "-z", "-Xlinker", "now",
    ]  # fmt: skip
    return [
        *("-c", "release", "--product", "MFAFFI", "-debug-info-format", "none"),
        *("-Xcc", "-g0", "-Xcc", f"-ffile-prefix-map={package}=."),
        *(linux if SYSTEM == "linux" else ["-Xlinker", "-headerpad_max_install_names"]),
    ]


def _swift_build(temporary: Path, library: Path, detail: Callable[[str], None]) -> None:
    # A copy, so that the build never sees (or leaves) a .build folder of another kind of build.
    package = temporary / "package"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns(".build", "overlay"))
    command = [
        "swift",
        "build",
        *_swift_flags(str(package)),
        "--scratch-path",
        str(temporary / "b"),
    ]
    process.run(command, cwd=package, on_line=detail)
    folder = capture([*command, "--show-bin-path"], cwd=package)
    shutil.copy2(Path(folder) / LIBRARY, library)


def _cc_flags(package: str) -> list[str]:
    link = (
        ["-dynamiclib", f"-Wl,-install_name,@rpath/{LIBRARY}", "-Wl,-headerpad_max_install_names"]
        if SYSTEM == "darwin"
        else [
            "-shared",
            f"-Wl,-soname,{LIBRARY}",
            "-Wl,-z,relro,-z,now",
            "-Wl,--as-needed",
            f"-Wl,--version-script={package}/{EXPORTS}",
        ]
    )
    return [*C_FLAGS, "-g0", f"-ffile-prefix-map={package}=.", *link]


def _cc_build(_temporary: Path, library: Path, detail: Callable[[str], None]) -> None:
    sources = sorted(p.relative_to(PACKAGE).as_posix() for p in SOURCES.rglob("*.c"))
    include = (SOURCES / "include").relative_to(PACKAGE).as_posix()
    command = ["cc", *_cc_flags(str(PACKAGE)), f"-I{include}", *sources, "-o", str(library)]
    command += ["-lm", "-lpthread"]
    process.run(command, cwd=PACKAGE, on_line=detail)


def _title(toolchain: str) -> str:
    return "swift build -c release" if toolchain == "swift" else "cc"


def compiler(toolchain: str) -> str:
    """Return the line by which the compiler of ``toolchain`` introduces itself."""
    text = capture([toolchain, "--version"])
    return next(line for line in text.splitlines() if "ersion" in line or "gcc" in line or line)


def _works(*command: str) -> bool:
    try:
        capture(command)
    except ToolError:
        return False
    return True
