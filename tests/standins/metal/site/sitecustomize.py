"""STAND-IN: lets child processes of a test see the same stand-ins. Python imports this at start."""

from __future__ import annotations

import os
import sys

if os.environ.get("QWEN_MFA_METAL_STANDIN"):
    sys.path.insert(0, os.environ["QWEN_MFA_METAL_STANDIN"])
    from tests.standins.metal import activate

    activate.activate(setattr, activate.SYSCTL)
    import Metal

    for _word in os.environ.get("QWEN_MFA_METAL_SWITCHES", "").split():
        _name, _, _value = _word.partition("=")
        Metal.library.standin_set(_name.encode(), int(_value))
