"""Rebuild a wheel of this project from the sources that it names, and compare the bytes.

Exit status: 0 the bytes match, 1 they do not, or it cannot be rebuilt here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from build_tools.commands.reproduce import add_isolation
from build_tools.native import portable
from build_tools.reproduce.build import PLAIN, build
from build_tools.reproduce.compare import differences
from build_tools.reproduce.rebuild import find_commit, read_claim
from build_tools.support.console import say, stdout
from build_tools.support.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("wheel", type=Path, metavar="WHEEL")
    add_isolation(parser)


def run(args: argparse.Namespace) -> int:
    """Find the commit, rebuild, compare."""
    claim = read_claim(args.wheel)
    if claim.engine == "metal" and sys.platform != "darwin":
        msg = f"{args.wheel.name} embeds the Metal engine, which only a Mac can rebuild"
        raise UsageError(msg)
    commit = find_commit(claim)
    say(f"{args.wheel.name}: made of commit {commit}")
    here = portable.compiler(claim.toolchain) if claim.toolchain != "none" else ""
    if here != claim.compiler:
        say(f"Note: the wheel was compiled by {claim.compiler!r}, this machine has {here!r}.")
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        rebuilt = build(
            Path(folder),
            PLAIN,
            toolchain=claim.toolchain,
            commit=commit,
            isolated=args.isolated,
        )
        found = differences(args.wheel, rebuilt)
    if not found:
        stdout.print(f"{args.wheel.name}: verified: the rebuilt wheel has the same bytes")
        return 0
    stdout.print(f"{args.wheel.name}: NOT reproduced; first: the wheel, second: rebuilt here")
    for line in found:
        stdout.print(f"  {line}")
    return 1
