"""What decisions depend on: they hold in the environment that they were made in alone."""

from __future__ import annotations

from typing import Any

from qwen_mfa import machine, settings
from qwen_mfa.errors import LibraryError
from qwen_mfa.native import library

# Which of its kernels the engine takes is measured in each process, and may come out one way or the
# other where two are about as fast: what was found out about each is told apart by its record.
MEASURED = ("isa", "bf16")


def environment() -> dict[str, Any]:
    """Return the environment as JSON values; any difference makes it another one."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import

    here = machine.read()
    try:
        opened = library.load()
        facts = {name: fact for name, fact in opened.facts.items() if name not in MEASURED}
        native: dict[str, Any] = {"sha256": opened.sha256, **facts}
    except LibraryError as error:
        native = {"unusable": error.cause}
    try:
        ours = version("qwen-mfa")
    except PackageNotFoundError:  # run from a source tree
        ours = "unknown"
    return {
        "qwen-mfa": ours,
        "library": native,
        # Chooses among the Metal library's shaders, which are validated and measured as they are.
        "shaders": settings.current().shader_variant,
        "system": [here.system, here.release, here.build, here.machine],
        "processor": [here.chip, here.gpu],
        "cpus": here.cpus,
        "mlx": [here.mlx, *here.backends],
    }
