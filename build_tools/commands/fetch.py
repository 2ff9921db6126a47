"""Fetch the pinned source into the cache and verify every byte of it against the lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_tools.commands import common
from build_tools.source import fetch, remotes
from build_tools.source import lock as locks
from build_tools.support.console import stdout

if TYPE_CHECKING:
    import argparse

HELP = "fetch and verify the pinned upstream source"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fetch``."""
    common.add_lock(parser)
    remotes.add_arguments(parser)
    parser.add_argument(
        "--refresh", action="store_true", help="throw the cached tree away and fetch it anew"
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, verify, and print where the tree lies."""
    found = fetch.obtain(
        locks.load(args.lock),
        cache=args.cache,
        remotes=remotes.from_arguments(args),
        refresh=args.refresh,
    )
    stdout.print(str(found.root), markup=False)
    return 0
