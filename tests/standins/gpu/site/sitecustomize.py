"""STAND-IN: lets child processes of a test see the same stand-in. Python imports this at start."""

from __future__ import annotations

import os
import sys

if os.environ.get("QWEN_MFA_GPU_STANDIN"):
    sys.path.insert(0, os.environ["QWEN_MFA_GPU_STANDIN"])
    from tests.standins import gpu

    gpu.activate(setattr)
