"""Peak memory of some work, in a process of its own. Run as ``python -m …``, see `measure`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from qwen_mfa.cli import device
from qwen_mfa.cli.sample import MALLOC

if TYPE_CHECKING:
    from collections.abc import Mapping


def measure(module: str, arguments: Mapping[str, Any], *, timeout: float) -> int | None:
    """Return how much memory one piece of work adds at its peak, in bytes: see `device.growth`.

    Args:
        module: One with a function ``prepared(arguments)``, which returns the work.
        arguments: For that function; anything that JSON can hold.
        timeout: Seconds to wait.

    Returns ``None`` where the work fails or takes too long, or where the system cannot tell.

    """
    request = {"module": module, "arguments": dict(arguments)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_mfa.cli.bench.footprint"],
            input=json.dumps(request),
            env={**os.environ, **MALLOC},  # noqa: TID251 - handed on
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return int(done.stdout.split()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        return None


def _main() -> None:
    request = json.load(sys.stdin)
    work = importlib.import_module(request["module"]).prepared(request["arguments"])
    _kept, peak = device.growth(work)
    print(peak)


if __name__ == "__main__":
    _main()
