"""These tests are of the native kernel: forced, since MLX's is faster for the small and few."""

from __future__ import annotations

import pytest

from qwen_mfa.selection import session


@pytest.fixture(autouse=True)
def native_kernel(monkeypatch: pytest.MonkeyPatch, fresh_dispatch: None) -> None:
    monkeypatch.setenv("QWEN_MFA_BACKEND", "cpu")
    session.start()
