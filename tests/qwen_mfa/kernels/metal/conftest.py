"""The stand-in Mac. A test fails if anything was misused, unless it says that it expects that."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.standins.metal import activate, capsules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class StandinMac:
    """Handle on the stand-ins."""

    COUNTS = (
        *("encodes", "commits", "waits", "runs", "live_commands", "live_buffers", "compiles"),
        "forwards",
    )

    def __init__(self, values: dict[str, str]) -> None:
        import Metal

        self.library: Any = Metal.library
        self.values = values

    def switch(self, **switches: int) -> None:
        for name, value in switches.items():
            self.library.standin_set(name.encode(), value)

    def count(self, what: str) -> int:
        return int(self.library.standin_count(self.COUNTS.index(what)))

    def misuses(self) -> set[str]:
        """Return what was misused, and forget it."""
        text = self.library.standin_misuses().decode()
        self.library.standin_reset()
        return set(text.split("\n")) - {""}


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform == "darwin":
        pytest.skip("the stand-ins take Metal's place where there is none; see selftest --metal")
    return activate.build(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> Callable[[str], None]:
    """Let child processes have the stand-ins, and a cache of their own; set their switches."""
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("QWEN_MFA_METAL_STANDIN", str(root))
    monkeypatch.setenv("PYTHONPATH", str(activate.SITE))

    def switches(text: str) -> None:
        monkeypatch.setenv("QWEN_MFA_METAL_SWITCHES", text)

    return switches


@pytest.fixture
def mac(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, standin_library: Path
) -> Iterator[StandinMac]:
    """A machine with Metal, as far as the package can see."""
    from qwen_mfa.kernels.metal import device, execute
    from qwen_mfa.native import library
    from qwen_mfa.selection import candidates, session
    from qwen_mfa.validation.validate import ValidationResult

    def forget() -> None:
        execute.the_engine.forget()
        library.outcome.forget()
        device.checks.forget()
        session.start()

    forget()
    values = dict(activate.SYSCTL)
    monkeypatch.setenv("QWEN_MFA_LIBRARY", str(standin_library))
    monkeypatch.setenv("QWEN_MFA_BACKEND", "metal")
    # Validation through the stand-ins has tests of its own.
    if not request.node.get_closest_marker("validation"):
        validated = ValidationResult(ok=True)
        monkeypatch.setattr(candidates, "validated", lambda *_: validated)
    with monkeypatch.context() as patches:
        activate.activate(patches.setattr, values)
        import Metal

        assert Metal.library._name == os.fspath(standin_library)
        Metal.library.standin_reset()
        standin = StandinMac(values)
        yield standin
        left = standin.misuses()
        capsules.settings.update(device=8, cpu_address=False)
        forget()
    assert left == set()
