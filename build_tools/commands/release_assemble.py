"""Make the folder that is published from the files of all build jobs, or refuse them.

Refused are files that are missing, superfluous, of another version or commit, not ours, stand-ins,
or that fail the strict audit. The folder holds dist/, SHA256SUMS, sboms/ and NOTES.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from build_tools.release import assemble, project
from build_tools.support.console import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("built", type=Path, metavar="DIR", help="the wheels and the sdist")
    parser.add_argument(
        "--reports", type=Path, metavar="DIR",
        help="reports of the self-test on macOS; the notes say whether a GPU ran it",
    )  # fmt: skip
    parser.add_argument("--tag", required=True, help="the tag that is being released")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist")


def run(args: argparse.Namespace) -> int:
    """Check, assemble, print the checksums."""
    subject = project.load()
    assemble.require_tag(args.tag, subject)
    made = assemble.assemble(args.built, args.out, subject, reports=args.reports)
    stdout.print((made / assemble.SUMS).read_text(encoding="utf-8"), end="")
    return 0
