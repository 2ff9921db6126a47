"""What every test shares: the tests run against the installed wheel, never the source tree."""

from __future__ import annotations

import os
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


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the wrong copy of the package."""
    if (ROOT / "mfa_wheel") in Path(qwen_mfa.__file__).resolve().parents:
        msg = "qwen_mfa comes from the source tree; run `make install` and test the wheel"
        raise pytest.UsageError(msg)
    if sys.platform == "darwin":
        # The Metal library has a self-test of its own; what is tested here is the portable engine
        # (the Makefile builds it), which computes where MLX's default device is the CPU.
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))
        inherited = os.environ.get("PYTHONPATH")
        if str(CPU_DEVICE) not in (inherited or ""):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CPU_DEVICE), inherited]))
    # Never the user's own cache. Set once: child processes and test workers share it.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="qwen-mfa-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["QWEN_MFA_CACHE_DIR"] = folder.name


@pytest.fixture(autouse=True)
def fresh_dispatch() -> None:
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
