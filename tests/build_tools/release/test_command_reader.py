"""The reader of shell text that the tests of the workflows rely on."""

from __future__ import annotations

import pytest

from tests.build_tools.release.workflows import commands


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("make lint types", [["make", "lint", "types"]]),
        ("a=1 tool -x && other | third", [["tool", "-x"], ["other"], ["third"]]),
        ("tool one \\\n  two\nthree", [["tool", "one", "two"], ["three"]]),
        ("tool > out.txt 2> err.txt arg", [["tool", "2", "arg"]]),
        ('if tool "a b"; then other; fi', [["tool", "a b"], ["other"], ["fi"]]),
        ('tool --tag "$TAG" # why', [["tool", "--tag", "$TAG"]]),
    ],
)  # fmt: skip
def test_commands(script: str, expected: list[list[str]]) -> None:
    assert commands(script) == expected
