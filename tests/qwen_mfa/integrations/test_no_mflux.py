"""Without mflux: a clear error, and nothing else changes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from qwen_mfa.cli import main, mflux_command
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mflux") is not None, reason="mflux is installed in this environment"
)


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


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="mflux needs Python 3.11")
def test_what_it_says_works(root: Path, tmp_path: Path) -> None:
    """A newcomer's way: our wheel alone, what the command then asks for, and it starts."""
    (wheel,) = (root / "dist").glob("qwen_mfa-*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    def shell(command: str, status: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", command], env=env, check=False, capture_output=True, text=True
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    extra = "" if sys.platform == "darwin" else "[cpu]"
    shell(f"pip install '{wheel}{extra}'")
    said = shell("qwen-mfa run -- mflux-generate-qwen --help", 2)
    advice = re.search(r"pip install .*", said)
    assert advice is not None, said
    shell(advice[0])
    assert "--prompt" in shell("qwen-mfa run -- mflux-generate-qwen --help")
    assert "mlx-cpu" in shell("pip list") or sys.platform == "darwin"
