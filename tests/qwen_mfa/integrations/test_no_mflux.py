"""Without mflux: a clear error, and nothing else changes."""

from __future__ import annotations

import sys

import pytest

from qwen_mfa.cli import main
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux


def test_enable() -> None:
    finders = list(sys.meta_path)
    with pytest.raises(HostError, match=r"mflux is not installed for .*pip install"):
        mflux.enable()
    with pytest.raises(HostError, match="not installed"), mflux.enabled():
        pass
    assert sys.meta_path == finders
    assert mflux.status() == mflux.disable() == mflux.Status(enabled=False)


def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--", "-m", "this_must_not_start"]) == 2
    assert "mflux is not installed" in capsys.readouterr().err
