"""``abi.cdef`` against the C header that the library is built from, and against the library."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from pycparser import c_ast, c_generator, c_parser

from qwen_mfa.native import library
from qwen_mfa.native.ffi import declarations, ffi

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cpu

HEADER = "swift_pkg/Sources/MFAFFI/include/mfa_ffi.h"
# Enough of the system headers for a parser that knows C and nothing else.
PRELUDE = """
typedef _Bool bool; typedef unsigned long size_t; typedef int int32_t; typedef long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
"""
OURS_ALONE = {"free"}  # libc's


def signatures(text: str) -> dict[str, str]:
    """Return name -> canonical text of every function and struct that ``text`` declares."""
    found = {}
    for node in c_parser.CParser().parse(PRELUDE + text).ext:
        name = getattr(node, "name", None)
        if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
            node.storage, node.funcspec = [], []
            found[name] = _without_names(node)
        elif isinstance(node, c_ast.Typedef) and isinstance(node.type.type, c_ast.Struct):
            found[name] = c_generator.CGenerator().visit(node)
    return found


def _without_names(node: c_ast.Decl) -> str:
    for parameter in node.type.args.params if node.type.args else []:
        inner = parameter.type
        while not isinstance(inner, c_ast.TypeDecl):
            inner = inner.type
        inner.declname = None
        parameter.name = None
    return c_generator.CGenerator().visit(node)


def header(root: Path) -> str:
    done = subprocess.run(
        ["cc", "-E", "-P", "-nostdinc", "-DMFA_API=", "-x", "c", "-"],
        input=re.sub(r"#include <.*>", "", (root / HEADER).read_text(encoding="utf-8")),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(r"__attribute__\s*\(\(.*?\)\)", "", done.stdout)


def test_declarations_agree_with_the_header(root: Path) -> None:
    theirs = signatures(header(root))
    ours = signatures(re.sub(r"/\*.*?\*/", "", declarations(), flags=re.DOTALL))
    assert set(library.REQUIRED) | set(library.PORTABLE) <= set(ours)
    for name, text in ours.items():
        if name not in OURS_ALONE:
            assert text == theirs[name]


@pytest.mark.parametrize("name", ["mfa_get_version", "mfa_portable_args_t"])
def test_the_comparison_sees_a_difference(root: Path, name: str) -> None:
    text = header(root)
    altered = re.sub(r"int\s*\*\s*minor", "long *minor", text)
    altered = altered.replace("uint32_t max_threads", "int x")
    assert signatures(text)[name] != signatures(altered)[name]


def test_the_library_exports_the_whole_header(root: Path) -> None:
    names = [name for name in signatures(header(root)) if not name.endswith("_t")]
    assert len(names) > 25
    path = library.load().path
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    assert set(names) - exported == set()
    assert exported - set(names) == set()


def test_what_is_not_there_returns_an_error_code() -> None:
    """Calls outside forward attention are refused, with null handles too, and do not crash."""
    lib = library.load().lib
    null = ffi().NULL
    code = lib.mfa_attention_encode_mtl(
        null, null, null, 0, null, null, 0, null, null, 0, null, null, 0, null, 0,
        null, null, 0, 0, 0, 1, 1, 1, 1, 1, 1.0, False, null, null,
    )  # fmt: skip
    assert code in (1, 3)
