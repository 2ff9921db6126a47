"""Puts the stand-ins in the places of macOS, Metal, PyObjC and MLX's Metal buffers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
MODULES = HERE / "modules"
SITE = HERE / "site"
SYSCTL = {
    "kern.osproductversion": "26.1",
    "kern.osversion": "25B78",
    "machdep.cpu.brand_string": "Apple M3 Max (stand-in)",
    "hw.optional.arm64": "1",
    "sysctl.proc_translated": "0",
}


def build(folder: Path) -> Path:
    """Compile the stand-in library into ``folder``."""
    library = folder / "libMFAFFI-standin.so"
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        ["cc", *flags, str(HERE / "umfa.c"), "-o", str(library), "-lm", "-lpthread"], check=True
    )
    return library


def activate(put: Callable[[object, str, Any], None], values: dict[str, str]) -> None:
    """Replace every boundary by its stand-in, through ``put(object, name, value)``.

    ``QWEN_MFA_LIBRARY`` must name the stand-in library already.
    """
    import mlx.core as mx

    from qwen_mfa.kernels.metal import device, system
    from tests.standins.metal import capsules

    if str(MODULES) not in sys.path:
        sys.path.insert(0, str(MODULES))
    put(system, "SYSTEM", "darwin")
    put(system, "sysctl", lambda name: values.get(name, ""))
    put(device, "mlx_device", _mlx_device)
    put(mx.array, "__dlpack__", capsules.dlpack)
    put(mx.array, "__dlpack_device__", capsules.dlpack_device)


def _mlx_device() -> tuple[Any, str, str]:
    import Metal
    import mlx.core as mx

    return mx.DeviceType.gpu, *Metal.names()
