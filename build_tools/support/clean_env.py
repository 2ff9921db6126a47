"""A clean environment outside the clone, as a user's is: nothing of ours on any path."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.support.process import run

if TYPE_CHECKING:
    from pathlib import Path

# What a child may inherit: enough to find the network, nothing that steers Python or the loader.
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TERM", "TMPDIR", "SSL_CERT_FILE")
_KEPT_PREFIXES = ("PIP_", "HTTP_", "HTTPS_", "NO_PROXY", "http_", "https_", "no_proxy", "REQUESTS_")


@dataclass(frozen=True, kw_only=True)
class CleanEnvironment:
    """A virtual environment in a folder of its own, and the variables its programs get."""

    folder: Path
    python: str = sys.executable

    @property
    def bin(self) -> Path:
        """Return the folder of its programs."""
        return self.folder / "venv" / "bin"

    def variables(self) -> dict[str, str]:
        """Return the environment variables: no PYTHON*, LD_*, DYLD_* or QWEN_MFA_*."""
        return {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or name.startswith(_KEPT_PREFIXES)
        }

    def create(self) -> None:
        """Make the virtual environment."""
        self.run([self.python, "-m", "venv", str(self.folder / "venv")])

    def install(self, *requirements: str) -> None:
        """Install ``requirements`` with its own pip."""
        pip = [str(self.bin / "python"), "-m", "pip", "install", "--quiet"]
        self.run([*pip, "--disable-pip-version-check", *requirements])

    def run(self, command: list[str]) -> None:
        """Run ``command`` from the environment's folder."""
        run(command, cwd=self.folder, env=self.variables())
