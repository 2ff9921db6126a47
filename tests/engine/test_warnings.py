"""The sources compile without a warning, and the library exports its interface and nothing else."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import ENGINE, run, sources

if TYPE_CHECKING:
    from pathlib import Path

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wstrict-prototypes", "-Werror")


def build(compiler: str, target: Path, *flags: str) -> Path:
    run(
        [
            compiler,
            *flags,
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            f"-I{ENGINE / 'include'}",
            *sources(),
            "-o",
            str(target),
            "-lm",
            "-lpthread",
        ]
    )
    return target


@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_no_warning(compiler: str, level: str, tmp_path: Path) -> None:
    build(compiler, tmp_path / "library.so", level, *STRICT)


def test_header_is_plain_c_and_cpp(compiler: str, tmp_path: Path) -> None:
    for suffix, standard in ((".c", "-std=c99"), (".cpp", "-std=c++11")):
        source = tmp_path / f"include{suffix}"
        source.write_text('#include "mfa_ffi.h"\n', encoding="utf-8")
        run(
            [
                compiler,
                standard,
                *STRICT[:-2],
                "-Werror",
                f"-I{ENGINE / 'include'}",
                "-fsyntax-only",
                str(source),
            ]
        )


def test_exports_the_interface_only(gcc: str, tmp_path: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    library = build(gcc, tmp_path / "library.so", "-O1")
    listed = run([nm, "-D", "--defined-only", str(library)])
    exported = {line.split()[-1] for line in listed.splitlines()}
    header = (ENGINE / "include" / "mfa_ffi.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declared = set(re.findall(r"\b(mfa_\w+)\s*\(", header))
    assert len(declared) > 30
    assert exported == declared
