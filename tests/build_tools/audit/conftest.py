"""What the tests of the audit share."""

from __future__ import annotations

import pytest

from build_tools.audit import libraries
from tests.build_tools.audit.makers import ZIG_EXPORTS


@pytest.fixture(autouse=True)
def zig_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "ABI", (*libraries.ABI, *ZIG_EXPORTS))
