"""What every front end runs; everything else is in pyproject.toml and build_tools/wheel."""

import sys
from pathlib import Path

from setuptools import setup

# PEP 517 front ends do not put the project on the path.
sys.path.insert(0, str(Path(__file__).parent))

from build_tools.audit.auditor import require
from build_tools.wheel.setuptools_commands import options

setup(**options(check=require))
