"""mflux with our attention: switched on and off without touching mflux's code.

mflux's modules bind MLX's function by name, so that replacing it in ``mx.fast`` would not reach
them. `enable` rebinds the name in the modules of the models asked for, and only there; modules
that are not imported yet follow when they are. `disable` gives every attribute back.

    from qwen_mfa.integrations import mflux

    with mflux.enabled():
        image = model.generate_image(...)
"""

from qwen_mfa.integrations.mflux.integration import (
    Status,
    check,
    disable,
    enable,
    enabled,
    status,
    step,
)
from qwen_mfa.integrations.mflux.modules import MODULES
from qwen_mfa.integrations.mflux.options import Options

__all__ = [
    "MODULES",
    "Options",
    "Status",
    "check",
    "disable",
    "enable",
    "enabled",
    "status",
    "step",
]
