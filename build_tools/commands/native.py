"""Build the native library, or take it from the cache, and say where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_tools import portable
from build_tools.console import stdout

if TYPE_CHECKING:
    import argparse

HELP = "build the native library"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--toolchain", choices=["swift", "cc"], help="insist on one toolchain")


def run(args: argparse.Namespace) -> int:
    """Build and print the library's path."""
    built = portable.build(toolchain=args.toolchain)
    stdout.print(str(built.library) if built else "none")
    return 0
