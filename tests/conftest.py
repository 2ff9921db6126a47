"""What every test shares: the installed wheel, never the source tree; and the device.

Everything runs on MLX's CPU device, as on any machine. With ``--gpu`` (`make test-gpu`) tests run
on MLX's default device, which has to be a GPU; those marked ``cpu`` stay on the CPU, their children
too, and those marked ``gpu`` run at all.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from filelock import FileLock

import qwen_mfa

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CPU_DEVICE = ROOT / "tests" / "standins" / "cpu_device"
CPU = mx.Device(mx.DeviceType.cpu)
# MLX's own, also while a test has put the stand-in of a GPU in their place.
default_device, set_default_device = mx.default_device, mx.set_default_device


class SaysAtOnce:
    """Names each failure when it happens: a run on a lent GPU may be cut off before the end."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            words = report.longreprtext.strip().splitlines() or [""]
            sys.stderr.write(f"\nFAILED {report.nodeid} - {words[-1]}\n")
            sys.stderr.flush()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="test on MLX's default device, a GPU")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device; refuse to test the wrong copy of the package."""
    if (ROOT / "mfa_wheel") in Path(qwen_mfa.__file__).resolve().parents:
        msg = "qwen_mfa comes from the source tree; run `make install` and test the wheel"
        raise pytest.UsageError(msg)
    is_gpu = mx.default_device().type == mx.DeviceType.gpu
    if config.getoption("--gpu"):
        if not is_gpu:
            msg = f"--gpu: MLX's default device is {mx.default_device()}, no GPU"
            raise pytest.UsageError(msg)
        # What is compared in float32 is computed in float32.
        os.environ["MLX_ENABLE_TF32"] = "0"
        if "PYTEST_XDIST_WORKER" not in os.environ:
            config.pluginmanager.register(SaysAtOnce())
    elif is_gpu:
        # Of a Mac's wheel, too, what is tested here is the portable engine (the Makefile builds
        # it); the Metal library has a self-test of its own.
        mx.set_default_device(CPU)
        os.environ["PYTHONPATH"] = _with_cpu_device()
    # Children that are sent Ctrl-C shall see it, also where the tests are a job in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Never the user's own cache. Set once: child processes and test workers share it.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="qwen-mfa-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["QWEN_MFA_CACHE_DIR"] = folder.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_cuda = mx.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not config.getoption("--gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))
        unfit = item.get_closest_marker("not_on_cuda")
        if unfit and is_cuda:
            item.add_marker(pytest.mark.skip(reason=f"MLX's CUDA build: {unfit.args[0]}"))


def _with_cpu_device() -> str:
    """Return a ``PYTHONPATH`` that makes the CPU MLX's default device in children, too."""
    inherited = os.environ.get("PYTHONPATH", "")
    parts = [x for x in inherited.split(os.pathsep) if x and x != str(CPU_DEVICE)]
    return os.pathsep.join([str(CPU_DEVICE), *parts])


@pytest.fixture(autouse=True)
def on_its_device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let a test that is marked ``cpu`` compute there, with all that it starts."""
    before = default_device()
    if before.type == mx.DeviceType.cpu or not request.node.get_closest_marker("cpu"):
        yield
        return
    monkeypatch.setenv("PYTHONPATH", _with_cpu_device())
    set_default_device(CPU)
    yield
    set_default_device(before)


@pytest.fixture(autouse=True)
def fresh_dispatch(on_its_device: None) -> None:
    """Let no test inherit another's choices or quarantined kernels."""
    from qwen_mfa.selection import session

    session.start()


@pytest.fixture
def in_tree() -> Iterator[None]:
    """Build in this very tree, as a user does, while no other test worker does."""
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / "tests.lock"):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
