"""Without mflux: a clear error, and nothing else changes."""

from __future__ import annotations

import sys

import pytest

from qwen_mfa.cli import main, mflux_command
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


def test_run_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A command of mflux is missing because mflux is."""
    for command in (["mflux-generate-qwen"], ["/no/such/mflux-generate-qwen-edit"]):
        assert main(["run", "--", *command]) == 2
        assert "mflux is not installed" in capsys.readouterr().err


def test_mflux_s_own_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mflux-generate-qwen-mfa", "--help"])
    assert mflux_command.main() == 2
    assert "mflux is not installed" in capsys.readouterr().err
