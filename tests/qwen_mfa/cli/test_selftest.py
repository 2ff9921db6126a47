"""``qwen-mfa info`` and ``qwen-mfa selftest`` as a user runs them."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa import cli
from qwen_mfa.cli import sample, selftest
from qwen_mfa.kernels import cpu
from qwen_mfa.native import library
from qwen_mfa.selection import session

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call

pytestmark = pytest.mark.cpu

QWEN_MFA = Path(sys.executable).parent / "qwen-mfa"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, cold: Path) -> None:
    """What a wrong kernel leaves behind is not for other tests; and nothing is forced."""
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")  # what dispatch would choose is not the matter here
    session.start()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(QWEN_MFA), *args], capture_output=True, text=True, check=False)


def test_version_is_the_distribution_s() -> None:
    done = run("--version")
    assert done.stdout.strip() == f"qwen-mfa {importlib.metadata.version('qwen-mfa')}"
    assert library.load().manifest["package"]["version"] == importlib.metadata.version("qwen-mfa")


def test_info() -> None:
    done = run("info")
    assert done.returncode == 0
    assert str(library.load().path) in done.stdout
    facts = json.loads(run("info", "--json").stdout)
    assert facts["library"]["state"] == "ready"
    assert facts["library"]["built by"] in ("swift build -c release", "cc")


def test_selftest_passes_and_shows_a_table() -> None:
    done = run("selftest", "--image-tokens", "60")
    assert done.returncode == 0, done.stderr
    assert "All results agree." in done.stdout
    for word in ("bfloat16", "float16", "float32", "padding", "60 image + 100 text tokens"):
        assert word in done.stdout


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test in this process, with three heads."""
    monkeypatch.setattr(selftest, "take_in_child", sample.take)
    for module in (sample, selftest):
        monkeypatch.setattr(module, "HEADS", 3)


@pytest.mark.usefixtures("here")
def test_selftest_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--json", "--image-tokens", "30"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert len(report["rows"]) == 6
    assert all(row["kernel"] == "cpu" and row["error"] <= row["allowed"] for row in report["rows"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "fault", ["first head only", "one row", "mask ignored", "a little off", "NaN"]
)
def test_selftest_sees_a_wrong_kernel(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = cpu.run

    def wrong(call: Call) -> mx.array:
        if fault == "mask ignored":
            return mx.fast.scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)
        out = right(call)
        if fault == "first head only":
            out = mx.where(mx.arange(out.shape[1])[:, None, None] == 0, out, 0)
        if fault == "one row":
            out[:, 2, 77] = out[:, 2, 76]
        if fault == "a little off":
            out = out * 1.02
        if fault == "NaN":
            out = out + mx.where(mx.arange(out.shape[2])[:, None] == 3, mx.nan, 0)
        return out.astype(call.q.dtype)

    monkeypatch.setattr(cpu, "run", wrong)
    assert cli.main(["selftest", "--image-tokens", "40"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_selftest_survives_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    aborting = tmp_path / "python"
    aborting.write_text("#!/bin/sh\nkill -ABRT $$\n", encoding="utf-8")
    aborting.chmod(0o755)
    monkeypatch.setattr(sample.sys, "executable", str(aborting))
    assert cli.main(["selftest", "--image-tokens", "10"]) == 1
    assert "signal 6" in capsys.readouterr().out


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["nonsense"], ["selftest", "--image-tokens", "many"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_inputs_are_laid_out_as_hosts_have_them() -> None:
    call = sample.draw("bfloat16", masked=True, image_tokens=10)
    assert memoryview(call.q).strides[1] == 256  # type: ignore[arg-type,index]
    assert isinstance(call.mask, mx.array)
    assert call.mask.shape == (1, 1, 1, 110)
    assert call.mask.sum().item() == 110 - sample.PADDED
