"""What the commands measure is small here: the tests look at what they say of it."""

from __future__ import annotations

import pytest

from qwen_mfa.cli import precision
from qwen_mfa.cli.bench import dispatch


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor measures what bfloat16 gives on a block of one head."""
    monkeypatch.setattr(precision, "ON_CPU", (1, 2))


@pytest.fixture
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `bench dispatch` call with no more than 32 of anything, and import only once."""
    original = dispatch._problem
    monkeypatch.setattr(dispatch, "_problem", lambda *sizes: original(*(min(n, 32) for n in sizes)))
    monkeypatch.setattr(dispatch, "_IMPORTS", dict(list(dispatch._IMPORTS.items())[:1]))
