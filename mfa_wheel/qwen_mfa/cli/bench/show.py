"""Show results again that were kept, of a complete run or of one that was killed.

Without a file: the latest of `qwen-mfa bench attention`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwen_mfa.cli.bench import records
from qwen_mfa.cli.bench.common import add_formats, default_file, show

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    add_formats(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = records.load(args.file or default_file("attention"))
    if not args.json and not args.markdown:
        print(records.as_text(report.cases))
    show(report, args)
    return 0
