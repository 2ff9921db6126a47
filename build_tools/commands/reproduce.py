"""Build the wheel twice, from two fresh clones that have nothing in common, and compare the bytes.

Folder, front end, umask, locale, time zone, user, home, hash seed, dates of files, clock (where
faketime is installed) and CPU count all differ. Exit status: 0 identical, 1 not.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from build_tools.reproduce.build import PLAIN, STRANGE, build, toolchains, uncommitted
from build_tools.reproduce.compare import differences
from build_tools.support.console import say, stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--toolchain", choices=["swift", "cc", "none"], help="only this one")
    add_isolation(parser)
    parser.add_argument("--keep", type=Path, help="keep clones, logs and wheels in this new folder")


def add_isolation(parser: argparse.ArgumentParser) -> None:
    """Add the option that `verify` has too."""
    parser.add_argument(
        "--no-isolation",
        dest="isolated",
        action="store_false",
        help="use the build tools of this environment instead of installing them anew",
    )


def run(args: argparse.Namespace) -> int:
    """Build and compare for every toolchain."""
    left_out = uncommitted()
    if left_out:
        say(f"Note: {len(left_out)} uncommitted changes are not in the clones.")
    same = True
    for toolchain in [args.toolchain] if args.toolchain else toolchains():
        with ExitStack() as stack:
            if args.keep is None:
                temporary = tempfile.TemporaryDirectory(prefix="reproduce-")
                work = Path(stack.enter_context(temporary))
            else:
                work = args.keep / toolchain
                work.mkdir(parents=True)
            wheels = [
                build(work, how, toolchain=toolchain, isolated=args.isolated)
                for how in (PLAIN, STRANGE)
            ]
            found = differences(*wheels)
            same = same and not found
            result = "different" if found else f"identical, {wheels[0].stat().st_size} bytes"
            stdout.print(f"{toolchain}: {wheels[0].name}: {result}")
            for line in found:
                stdout.print(f"  {line}")
    return 0 if same else 1
