"""These tests are of the native kernel."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def start(native_kernel: None) -> None:
    pass
