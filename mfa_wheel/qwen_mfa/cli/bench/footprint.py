"""One contestant's peak memory, in a process of its own. Run as ``python -m …``, see `measure`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import mlx.core as mx

from qwen_mfa.cli.bench.contestants import contestant
from qwen_mfa.cli.bench.shapes import Shape, draw
from qwen_mfa.cli.sample import MALLOC, peak_resident


def measure(name: str, shape: Shape, dtype: str, mask: str, *, timeout: float) -> int | None:
    """Return how much resident memory one call adds at its peak, in bytes; ``None`` if it fails."""
    request = {"name": name, "shape": asdict(shape), "dtype": dtype, "mask": mask}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_mfa.cli.bench.footprint"],
            input=json.dumps(request),
            env={**os.environ, **MALLOC},
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
    shape = Shape(**request["shape"])
    # Opens libraries and starts threads, so that neither counts.
    small = Shape(name="warm-up", batch=1, heads=2, seq_q=128, seq_kv=128, head_dim=shape.head_dim)
    contestant(request["name"], draw(small, request["dtype"], request["mask"]))()
    work = contestant(request["name"], draw(shape, request["dtype"], request["mask"]))
    mx.clear_cache()
    before = peak_resident(reset=True)
    kept = work()
    print(max(0, peak_resident() - before))
    del kept


if __name__ == "__main__":
    _main()
