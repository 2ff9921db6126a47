"""A machine on which MLX does not work: everything that can be said is said, nothing is a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from qwen_mfa import backend

if TYPE_CHECKING:
    from pathlib import Path

FAILURE = "libmlx.so: cannot open shared object file"
NO_BACKEND = 'MLX has no backend here: pip install "mlx[cpu]"'
# It depends on the backend that is installed; `test_what_to_do` has what it says.
SENTENCE = backend._sentence(ImportError(FAILURE))


@pytest.fixture
def without_mlx(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose MLX is the package without a backend."""
    folder = tmp_path / "broken"
    (folder / "mlx").mkdir(parents=True)
    (folder / "mlx" / "__init__.py").write_text("", encoding="utf-8")
    failing = f'raise ImportError("{FAILURE}")\n'
    (folder / "mlx" / "core.py").write_text(failing, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_mfa", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["info"], 0),
        (["bench", "--help"], 0),
        (["bench", "step", "--help"], 0),
        (["doctor", "--help"], 0),
        (["doctor"], 2),
        (["selftest"], 2),
        (["explain", "1", "2", "3", "4", "5", "float32"], 2),
        (["bench", "attention", "qwen-512"], 2),
        (["run", "--", "mflux-generate-qwen"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_commands(words: list[str], status: int, without_mlx: dict[str, str]) -> None:
    done = run(without_mlx, *words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status:
        # An error's text is wrapped by nothing.
        assert SENTENCE in (done.stdout if words == ["doctor"] else done.stderr)


def test_doctor_says_it_first(without_mlx: dict[str, str]) -> None:
    text = run(without_mlx, "doctor").stdout
    assert "1. " + SENTENCE in text
    report = json.loads(run(without_mlx, "doctor", "--json").stdout)
    assert report["status"] == 2
    assert report["advice"][0].startswith(SENTENCE)


def test_the_import_works_and_the_first_call_says_it(without_mlx: dict[str, str]) -> None:
    code = (
        "import qwen_mfa\n"
        "try:\n    qwen_mfa.scaled_dot_product_attention(1, 2, 3, scale=1)\n"
        "except qwen_mfa.MLXError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=without_mlx, capture_output=True, text=True, check=False
    )
    assert SENTENCE in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("system", "installed", "says"),
    [
        ("linux", set(), NO_BACKEND),
        ("linux", {"mlx-cuda-13"}, "MLX's backend mlx-cuda-13 does not work here (no libcuda)"),
        ("darwin", set(), "pip install --force-reinstall mlx mlx-metal"),
    ],
    ids=["none", "no driver", "macOS"],
)
def test_what_to_do(
    system: str, installed: set[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        assert name == "mlx.core"
        msg = "no libcuda"
        raise ImportError(msg)

    monkeypatch.setattr(backend, "SYSTEM", system)
    monkeypatch.setattr(backend, "_installed", lambda name: name in installed)
    monkeypatch.setattr(backend.importlib, "import_module", fail)
    backend.problem.cache_clear()
    try:
        assert says in backend.problem()
    finally:
        backend.problem.cache_clear()


def test_starting_imports_no_mlx() -> None:
    code = (
        "import sys, qwen_mfa.cli as cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit:\n    print('mlx.core' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
