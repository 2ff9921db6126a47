"""Build the native library, or take it from the cache, and say where it is.

The metal engine is the pinned upstream source with our repairs (macOS only); the portable engine is
this repository's own C code. The toolchain is checked before anything is fetched.
"""

from __future__ import annotations

import argparse
import sys

from build_tools.commands import common
from build_tools.native import metal, portable
from build_tools.source import lock as locks
from build_tools.source import overlay
from build_tools.support import paths
from build_tools.support.console import stdout
from build_tools.support.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--engine",
        choices=["portable", "metal", "auto"],
        default="auto",
        help="auto: metal on macOS, portable elsewhere (default)",
    )
    parser.add_argument(
        "--toolchain", choices=["swift", "cc"], help="portable: insist on one toolchain"
    )
    common.add_source(parser)
    common.add_overlay(parser)
    common.add_path(parser, "--work", paths.ROOT / "build" / "native", "where results are kept")
    common.add_path(
        parser, "--build-root", metal.CANONICAL,
        "metal: the folder in which the compiler works; its name is part of the library, so only "
        "the default gives the bytes that others get",
    )  # fmt: skip
    parser.add_argument(
        "--swift-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="metal: one more option for swift build, as --swift-option=-Xlinker; recorded in "
        "the manifest",
    )


def run(args: argparse.Namespace) -> int:
    """Build and print the library's path."""
    engine = args.engine
    if engine == "auto":
        engine = "metal" if sys.platform == "darwin" else "portable"
    if engine == "portable":
        built = portable.build(work=args.work.resolve(), toolchain=args.toolchain)
        stdout.print(str(built.library) if built else "none")
        return 0
    if args.toolchain is not None:
        msg = "--toolchain is for the portable engine; the metal engine is built by swift"
        raise UsageError(msg)
    request = metal.Request(
        lock=locks.load(args.lock),
        repairs=overlay.load(args.overlay),
        cache=args.cache.resolve(),
        work=args.work.resolve(),
        canonical=args.build_root.resolve(),
        options=tuple(args.swift_option),
    )
    finished = metal.build(request, remotes=common.remotes_of(args))
    stdout.print(str(finished.library))
    return 0
