"""Fetch the pinned source into the cache and verify every byte of it against the lock."""

from __future__ import annotations

import argparse

from build_tools.commands import common
from build_tools.support.console import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fetch``."""
    common.add_source(parser)
    parser.add_argument(
        "--refresh", action="store_true", help="throw the cached tree away and fetch it anew"
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, verify, and print where the tree lies."""
    stdout.print(str(common.pinned(args, refresh=args.refresh).root))
    return 0
