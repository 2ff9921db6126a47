"""What every test shares: the tests run against the installed wheel, never the source tree."""

from __future__ import annotations

from pathlib import Path

import pytest

import qwen_mfa

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the wrong copy of the package."""
    if (ROOT / "mfa_wheel") in Path(qwen_mfa.__file__).resolve().parents:
        msg = "qwen_mfa comes from the source tree; run `make install` and test the wheel"
        raise pytest.UsageError(msg)


@pytest.fixture(autouse=True)
def fresh_dispatch() -> None:
    """Let no test inherit another's choices or quarantined kernels."""
    from qwen_mfa import dispatch

    dispatch.reset()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
