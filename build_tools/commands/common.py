"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.source import fetch, overlay
from build_tools.source import lock as locks

if TYPE_CHECKING:
    import argparse


def add_lock(parser: argparse.ArgumentParser) -> None:
    """Add ``--lock``, ``--cache`` and ``--log``."""
    parser.add_argument(
        "--lock", type=Path, default=locks.DEFAULT, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--cache", type=Path, default=fetch.CACHE, metavar="DIR", help="default: %(default)s"
    )
    add_log(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add ``--log``."""
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="default: build/logs/<command>.log"
    )


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """Add ``--overlay``."""
    parser.add_argument(
        "--overlay",
        type=Path,
        default=overlay.FOLDER,
        metavar="DIR",
        help="the repairs; default: %(default)s",
    )
