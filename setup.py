"""The ordinary front door: everything else is in pyproject.toml and build_tools/wheel.py."""

import sys
from pathlib import Path

from setuptools import setup

# PEP 517 front ends do not put the project on the path.
sys.path.insert(0, str(Path(__file__).parent))

from build_tools.wheel.setuptools_commands import commands

setup(cmdclass=commands())
