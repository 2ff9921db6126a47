"""The tests in ``mflux/`` run in .venv-mflux, started by ``test_mflux.py``; nowhere else."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("mflux") else ["mflux"]
