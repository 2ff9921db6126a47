"""What several commands share: the arguments that name the pinned source, and getting it."""

from __future__ import annotations

import argparse
from pathlib import Path

from build_tools.native import typecheck
from build_tools.native.standins import Standins
from build_tools.source import fetch, overlay, remotes
from build_tools.source import lock as locks
from build_tools.source.fetch import Source
from build_tools.source.remotes import Remotes
from build_tools.support import paths


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add ``--lock``, ``--cache``, ``--mirror``, ``--offline`` and ``--log``."""
    add_path(parser, "--lock", locks.DEFAULT)
    add_path(parser, "--cache", fetch.CACHE)
    parser.add_argument(
        "--mirror",
        metavar="DIR|URL",
        help="folder or URL that holds copies of the repositories, as <owner>/<name>.git, "
        f"<name>.git or (folders) <owner>+<name>/repo; default: ${remotes.MIRROR_VARIABLE}",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        default=None,
        help=f"ask the mirror only; default: on when ${remotes.OFFLINE_VARIABLE} is set",
    )
    add_log(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add ``--log``."""
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="default: build/logs/<command>.log"
    )


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """Add ``--overlay``."""
    add_path(parser, "--overlay", overlay.FOLDER)


def add_compiled(parser: argparse.ArgumentParser, work: str) -> None:
    """Add what `compiled` needs; it works in the folder ``work`` of build/."""
    add_source(parser)
    add_overlay(parser)
    add_path(parser, "--work", paths.ROOT / "build" / work)


def add_path(parser: argparse.ArgumentParser, name: str, default: Path, about: str = "") -> None:
    """Add an option that takes a path; ``about`` says what lies there."""
    shown = f"{about}; default: %(default)s".removeprefix("; ")
    parser.add_argument(name, type=Path, default=default, metavar="PATH", help=shown)


def remotes_of(args: argparse.Namespace) -> Remotes:
    """Return whom to ask for the pinned source."""
    return remotes.choose(args.mirror, offline=args.offline)


def pinned(args: argparse.Namespace, *, refresh: bool = False) -> Source:
    """Return the verified source of ``--lock``."""
    return fetch.obtain(
        locks.load(args.lock), cache=args.cache, remotes=remotes_of(args), refresh=refresh
    )


def compiled(args: argparse.Namespace) -> tuple[Source, Path, Standins]:
    """Compile the pinned source with the overlay against the stand-ins; see `compile_tree`."""
    source = pinned(args)
    repairs = overlay.load(args.overlay)
    return source, *typecheck.compile_tree(source, repairs, work=args.work.resolve())
