"""``python -m qwen_mfa`` is ``qwen-mfa``."""

from __future__ import annotations

import sys

from qwen_mfa.cli import main

if __name__ == "__main__":
    sys.exit(main())
