"""Every public name has an example in its docstring, and each does what it shows."""

from __future__ import annotations

import ast
import doctest
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import qwen_image

if TYPE_CHECKING:
    from types import ModuleType

NAMES = [
    (module, name)
    for module in (qwen_mfa, qwen_image)
    for name in module.__all__
    if name != "__version__"  # a text
]


@pytest.mark.parametrize(
    ("module", "name"), NAMES, ids=[f"{module.__name__}.{name}" for module, name in NAMES]
)
def test_example(
    module: ModuleType, name: str, tmp_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no checkpoint
    given = {"mx": mx, "qwen_mfa": qwen_mfa}
    tests = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, globs=given)
    assert any(test.examples for test in tests), "it has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


PUBLIC = {".", "qwen_image", "integrations", "integrations/mflux"}
HOME = Path(qwen_mfa.__file__).parent


@pytest.mark.parametrize("file", sorted(HOME.rglob("__init__.py")), ids=lambda x: x.parent.name)
def test_a_package_that_is_not_public_says_so(file: Path) -> None:
    says = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    is_public = file.parent.relative_to(HOME).as_posix() in PUBLIC
    assert is_public != ("Not part of the public API" in says)
