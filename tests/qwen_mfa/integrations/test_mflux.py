"""Runs the tests in ``mflux/`` with the real mflux, newest and oldest supported, in .venv-mflux."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "mflux"
ON_GPU = "test_on_gpu.py"
FILES = sorted({path.name for path in FOLDER.glob("test_*.py")} - {ON_GPU})
TIMEOUT = 1800  # for a busy machine; half a minute each on a quiet one


@pytest.mark.parametrize("version", ["newest", "oldest"])
@pytest.mark.parametrize("file", FILES)
def test_with_real_mflux(root: Path, file: str, version: str) -> None:
    run(root, version, file)


@pytest.mark.gpu
@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_with_real_mflux_on_a_gpu(root: Path, version: str) -> None:
    run(root, version, ON_GPU, "--gpu")


def run(root: Path, version: str, file: str, *more: str) -> None:
    environment = root / ".venv-mflux"
    python = environment / "bin" / "python"
    assert python.exists(), "run `make mflux` first: it makes .venv-mflux"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    env["HF_HUB_OFFLINE"] = "1"  # nothing may download weights
    if version == "oldest":
        env["PYTHONPATH"] = str(environment / "oldest")
    options = ["-q", "-p", "no:cacheprovider", "-rA", *more]
    done = subprocess.run(
        [python, "-m", "pytest", *options, FOLDER / file],
        cwd=root,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    summary = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, summary
    assert re.search(r"\b\d+ passed\b", done.stdout), summary
    # Here a skip would be a hole that nobody sees.
    assert "skipped" not in done.stdout.splitlines()[-1], summary


def test_both_versions_are_there(root: Path) -> None:
    """The two environments hold the versions that the integration says it supports."""
    from qwen_mfa.integrations.mflux.modules import SUPPORTED

    found = []
    for extra in ("", str(root / ".venv-mflux" / "oldest")):
        code = "import importlib.metadata as m; print(m.version('mflux'))"
        env = {**os.environ, "PYTHONPATH": extra}
        python = root / ".venv-mflux" / "bin" / "python"
        done = subprocess.run(
            [python, "-c", code], env=env, check=True, capture_output=True, text=True, timeout=60
        )
        found.append(tuple(int(part) for part in done.stdout.strip().split(".")[:2]))
    newest, oldest = found
    assert oldest == SUPPORTED[0]
    assert newest == (SUPPORTED[1][0], SUPPORTED[1][1] - 1)
