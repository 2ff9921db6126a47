"""Every test here starts cold: an empty cache, and nothing forced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def start(cold: Path) -> None:
    pass
