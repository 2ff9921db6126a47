"""The child process of a validation: it never outlives its parent, and its end is read rightly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from qwen_mfa.validation import child
from qwen_mfa.validation.variants import Variant

pytestmark = pytest.mark.cpu

VARIANT = Variant(
    dtype="float32", mask="none", mask_axes="", relation="=", group=1, head_dim=64, value_dim=64,
    sinks=False, length=16,
)  # fmt: skip
# A parent whose child runs `code` in the place of a validation, and says its process number first.
PARENT = """
import json, sys
from qwen_mfa.validation import child
from qwen_mfa.validation.variants import Variant
child._CODE = sys.argv[1]
child.LIMIT = float(sys.argv[2])
print(child.validate_in_child("cpu", Variant(**json.loads(sys.argv[3])), "cpu"), flush=True)
"""
GUARDED = """
import json, os, sys, time
sys.path[:] = json.loads(sys.argv[1])
from qwen_mfa.validation import inside
"""
GUARD = "inside.guard(int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))\n"
WITHOUT_THE_SYSTEM_S_HELP = "sys.platform = 'darwin'\n" + GUARD + "sys.platform = 'linux'\n"
SAY = "with open({place!r}, 'w') as file: file.write(str(os.getpid()))\n"
SPIN = "while True: pass\n"


def started(place: Path, code: str, limit: float) -> subprocess.Popen[str]:
    code = GUARDED + code.replace("{place!r}", repr(str(place)))
    variant = json.dumps(asdict(VARIANT))
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, code, str(limit), variant], stdout=subprocess.PIPE, text=True
    )


def number(place: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if place.exists() and place.read_text(encoding="ascii"):
            return int(place.read_text(encoding="ascii"))
        time.sleep(0.01)
    pytest.fail("the child did not start")


def ends(process: int, seconds: float) -> bool:
    """Whether a process that is no child of ours is gone, or a zombie, in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
            if state.rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@linux
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("guard", [GUARD, WITHOUT_THE_SYSTEM_S_HELP], ids=["system", "pipe"])
def test_a_hanging_child_ends_with_its_parent(how: str, guard: str, tmp_path: Path) -> None:
    """It spun for ever."""
    with started(tmp_path / "pid", guard + SAY + SPIN, 60) as parent:
        process = number(tmp_path / "pid")
        parent.send_signal(signal.Signals[how])
        parent.wait()
        assert ends(process, 10)


@linux
def test_a_hanging_child_ends_by_itself(tmp_path: Path) -> None:
    """The alarm needs neither parent nor interpreter, nor that nobody has switched it off."""
    code = (
        "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "inside.guard(int(sys.argv[3]), int(sys.argv[4]), 1.0)\n" + SAY + SPIN
    )
    with started(tmp_path / "pid", code, 60) as parent:
        assert ends(number(tmp_path / "pid"), 20)
        assert parent.stdout is not None
        said = parent.stdout.read()
    assert "gave no answer" in said
    assert "SIGALRM" in said


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGHUP", "SIGINT"])
def test_an_end_from_outside_is_no_verdict(name: str) -> None:
    result = child._of_signal(signal.Signals[name])
    assert (result.died, result.lasting, result.outside) == (False, False, True)
    assert "from outside" in result.reason


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP"])
def test_a_crash_is_one(name: str) -> None:
    result = child._of_signal(signal.Signals[name])
    assert (result.died, result.lasting, result.outside) == (True, True, False)
    assert name in result.reason


NOISY = """
answer = int(sys.argv[2])
os.set_inheritable(answer, False)
os.write(1, b'text without an end of line' * 100000)
os.write(2, b'and more of it' * 100000)
import subprocess
subprocess.Popen(['sleep', '60'])  # it holds the pipe of our errors open
os.write(answer, b'{"ok": true}')
os._exit(0)
"""


def test_what_a_library_prints_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what it starts and leaves behind."""
    monkeypatch.setattr(child, "_CODE", GUARDED + NOISY)
    start = time.monotonic()
    result = child.validate_in_child("cpu", VARIANT, "cpu")
    assert result.ok, result.reason
    assert time.monotonic() - start < child.LIMIT


def test_a_cold_mac_has_time() -> None:
    assert child.limit("metal") > 2 * 120 < child.limit("metal-low")
