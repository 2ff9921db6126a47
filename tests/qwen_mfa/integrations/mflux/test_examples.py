"""The examples in the docstrings of `qwen_mfa.integrations.mflux`, over the real mflux."""

from __future__ import annotations

import doctest

import pytest

from qwen_mfa.integrations import mflux


@pytest.mark.parametrize("name", [name for name in mflux.__all__ if name != "MODULES"])
def test_example(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False)
    tests = found.find(getattr(mflux, name), name, globs={"mflux": mflux})
    assert any(test.examples for test in tests), "it has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
