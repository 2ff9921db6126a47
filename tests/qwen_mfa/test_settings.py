"""Every variable: read once, checked, and a wrong value is named and never a kernel's fault."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import cli, settings
from qwen_mfa.errors import SettingError
from qwen_mfa.native import library
from qwen_mfa.selection import session
from tests.qwen_mfa.conftest import python

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("cold")

WRONG = [
    (settings.TUNE, "maybe", "say 0 or 1"),
    (settings.KEEP_PADDING, "yes", "say 0 or 1"),
    (settings.NUM_THREADS, "0", "say a whole number above 0"),
    (settings.NUM_THREADS, "-1", "say a whole number above 0"),
    (settings.NUM_THREADS, "abc", "say a whole number above 0"),
    (settings.NUM_THREADS, "1.5", "say a whole number above 0"),
    (settings.NUM_THREADS, "9" * 20, "say a whole number above 0"),
    (settings.NUM_THREADS, "9" * 5000, "say a whole number above 0"),
    (settings.ISA, "nonsense", "say one of"),
    (settings.SHADER_VARIANT, "fastest", "say one of upstream, plain"),
]


@pytest.mark.parametrize(("variable", "value", "wanted"), WRONG)
def test_a_wrong_value_is_named_by_a_call(
    variable: str, value: str, wanted: str, monkeypatch: pytest.MonkeyPatch, cold: object
) -> None:
    monkeypatch.setenv(variable, value)
    session.start()
    q = mx.zeros((1, 4, 128, 64))
    with pytest.raises(SettingError, match=f"{variable}={value}: {wanted}"):
        qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.1)
    assert not session.current.quarantined


@pytest.mark.parametrize(
    "command", ["doctor", "info", "selftest", "explain 1 4 128 128 64 float32"]
)
def test_a_wrong_value_is_named_by_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(settings.ISA, "nonsense")
    session.start()
    assert cli.main(command.split()) == 2
    captured = capsys.readouterr()
    assert "QWEN_MFA_ISA=nonsense" in captured.err
    assert "wrong on this machine" not in captured.out + captured.err


# Known, and of another family than the processors that this runs on.
ABSENT = "neon" if platform.machine().lower() in {"x86_64", "amd64"} else "avx2"


def test_an_instruction_set_that_this_processor_does_not_have(cold: Path) -> None:
    """The engine is loaded once a process and reads it then: each in a process of its own."""
    code = "import mlx.core as mx, qwen_mfa; from qwen_mfa import cli\n"
    code += "q = mx.zeros((1, 4, 128, 64))\n"
    code += "try: qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.1)\n"
    code += "except qwen_mfa.SettingError as error: print(error)\n"
    code += "print(cli.main(['doctor']), qwen_mfa.stats().quarantined)"
    done = python(code, QWEN_MFA_ISA=ABSENT)
    named = f"QWEN_MFA_ISA={ABSENT}: this machine cannot use it; say one of "
    assert done.stdout.startswith(named), done.stderr
    assert "generic" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 {}"
    assert done.stderr == f"qwen-mfa: {done.stdout.splitlines()[0]}\n"
    assert not list(cold.glob("*.json"))


def test_an_instruction_set_does_not_matter_without_a_library_that_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(settings.ISA, ABSENT)
    monkeypatch.setattr(library, "NATIVE", tmp_path)
    library.outcome.forget()
    session.start()
    try:
        q = mx.zeros((1, 4, 128, 64))
        qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.1)
    finally:
        library.outcome.forget()


@pytest.mark.cpu  # where there is something to keep: a kernel that was measured
def test_a_cache_folder_that_cannot_be_used_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "file"))
    session.start()
    q = mx.zeros((1, 4, 128, 64))
    for heads in (4, 3):
        qwen_mfa.scaled_dot_product_attention(q[:, :heads], q[:, :heads], q[:, :heads], scale=0.1)
    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warned) == 1, warned
    assert warned[0].startswith(f"QWEN_MFA_CACHE_DIR={tmp_path / 'file'} cannot be used (")


def test_nothing_is_recorded_of_a_wrong_value(cold: object) -> None:
    code = "import mlx.core as mx, qwen_mfa; q = mx.zeros((1, 4, 128, 64)); "
    code += "qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.1)"
    done = python(code, QWEN_MFA_ISA="nonsense")
    assert "SettingError: QWEN_MFA_ISA=nonsense" in done.stderr
    assert not hasattr(cold, "glob") or not list(cold.glob("*.json"))


def test_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {settings.TUNE: "0", settings.KEEP_PADDING: "1", settings.NUM_THREADS: "3"}
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    session.start()
    found = settings.current()
    assert (found.tunes, found.padding, found.num_threads) == (False, settings.KEEP, 3)
    monkeypatch.setenv(settings.TUNE, "1")
    assert not settings.current().tunes, "it was read twice"
