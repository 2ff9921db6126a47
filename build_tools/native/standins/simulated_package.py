"""The installed package over a library whose kernels are executed: from its functions to numbers.

Between a call and its result everything is real but PyObjC, MLX's Metal buffers and the GPU, which
have stand-ins (tests/standins/metal, metal-swift, software_metal).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build_tools.support import files
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    from build_tools.native.standins.simulation import Simulator

STANDINS = ROOT / "tests" / "standins" / "metal"
# What a caller can do wrong, and the reference implementation's golden vectors.
TESTS = ROOT / "tests" / "qwen_mfa" / "kernels" / "metal" / "chain.py"
TIMEOUT = 7200
# Results have bfloat16's 8 bits: half a unit in the last place of values up to 2.
ALLOWED = 2.0**-7


class Package:
    """Runs the installed package over one built library, as one device and shader variant."""

    def __init__(self, simulator: Simulator, family: int, variant: str) -> None:
        # To the package all simulated devices are one: none shall rely on another's validation,
        # nor on an earlier run's.
        decisions = tempfile.mkdtemp(prefix="simulated-package-")
        weakref.finalize(self, files.remove_tree, Path(decisions))
        self.environment = simulator.environment(family, variant) | {
            "QWEN_MFA_CACHE_DIR": decisions,
            "QWEN_MFA_METAL_STANDIN": str(ROOT),
            "PYTHONPATH": str(STANDINS / "site"),
            "QWEN_MFA_BACKEND": "metal",
        }

    def call(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python with ``command`` and return what came of it."""
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=self.environment | env, check=False,
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip

    def validation(self) -> dict[str, Any]:
        """Run the whole validation of the Metal engine (``selftest --metal`` without --quick).

        Raises:
            BuildError: Its process ended before its time.

        """
        return _last_object(self.call("-m", "qwen_mfa.cli.metal_sections", "validation"))

    def selftest(self, folder: Path) -> dict[str, Any]:
        """Run ``qwen-mfa selftest --metal --quick`` and return its report.

        Raises:
            BuildError: There is no report.

        """
        report = folder / "report.json"
        report.unlink(missing_ok=True)
        words = ("-m", "qwen_mfa", "selftest", "--metal", "--quick", "--report", str(report))
        done = self.call(*words)
        if not report.is_file():
            raise BuildError(_ended(done))
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found

    def attend(self, tokens: int, heads: int) -> dict[str, Any]:
        """Attend with the public function; return ``error``, ``seconds``, ``waits``, ``misuses``.

        Raises:
            BuildError: Its process ended before its time.

        """
        return _last_object(self.call(str(STANDINS / "attend.py"), str(tokens), str(heads)))

    def tests(self) -> str:
        """Run the tests that go through everything; return what failed, or nothing."""
        done = self.call("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(TESTS))
        return "" if done.returncode == 0 else _ended(done)


def _last_object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the last JSON object of standard output, to which the library prints, too."""
    for line in reversed(done.stdout.splitlines()):
        _, brace, text = line.partition("{")
        if done.returncode == 0 and brace:
            found: dict[str, Any] = json.loads(brace + text)
            return found
    raise BuildError(_ended(done))


def _ended(done: subprocess.CompletedProcess[str]) -> str:
    words = " ".join(done.args[1:4])
    return f"{words} … ended ({done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
