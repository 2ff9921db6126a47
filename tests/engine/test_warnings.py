"""The sources compile without a warning, and the library exports its interface and nothing else."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import ENGINE, OPTIMISED, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine_build import Builder


@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_no_warning(builder: Builder, compiler: str, level: str) -> None:
    assert builder.warnings(compiler, level, *OPTIMISED[1:]) == ""


HEADER = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")


def test_header_is_plain_c_and_cpp(compiler: str, tmp_path: Path) -> None:
    for suffix, standard in ((".c", "-std=c99"), (".cpp", "-std=c++11")):
        source = tmp_path / f"include{suffix}"
        source.write_text('#include "mfa_ffi.h"\n', encoding="utf-8")
        run(
            [
                compiler,
                standard,
                *HEADER,
                f"-I{ENGINE / 'include'}",
                "-fsyntax-only",
                str(source),
            ]
        )


def test_exports_the_interface_only(builder: Builder, gcc: str, tmp_path: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    library = tmp_path / "library.so"
    objects = builder.objects(gcc, *OPTIMISED)
    run([gcc, "-shared", *objects, "-o", str(library), "-lm", "-lpthread"])
    listed = run([nm, "-D", "--defined-only", str(library)])
    exported = {line.split()[-1] for line in listed.splitlines()}
    header = (ENGINE / "include" / "mfa_ffi.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declared = set(re.findall(r"\b(mfa_\w+)\s*\(", header))
    assert len(declared) > 30
    assert exported == declared
