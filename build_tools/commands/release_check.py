"""Say on one screen whether HEAD could be released now, and what is missing.

Exit status 0 when nothing that can be known here stands against it, else 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.markup import escape

from build_tools.release import project, readiness
from build_tools.release.readiness import State
from build_tools.support import tables
from build_tools.support.console import stdout

COLOURS = {State.YES: "green", State.NO: "bold red", State.UNKNOWN: "yellow"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--tag", help="the tag that is being released: it must be HEAD's")
    parser.add_argument("--dist", type=Path, metavar="DIR", help="the files of the release")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Ask every condition and print the answers."""
    subject = project.load()
    answers = readiness.answers(subject, tag=args.tag, built=args.dist)
    against = [each for each in answers if each.state is State.NO]
    if args.json:
        told = {
            "version": subject.version,
            "ready": not against,
            "conditions": [
                {"condition": a.condition, "state": a.state.value, "detail": a.detail}
                for a in answers
            ],
        }
        print(json.dumps(told, indent=2))  # noqa: T201 - a document, not a message
        return 1 if against else 0
    table = tables.new(f"Release {subject.version}", "", "condition", "detail")
    for each in answers:
        state = f"[{COLOURS[each.state]}]{each.state.value}[/]"
        table.add_row(state, each.condition, escape(each.detail))
    tables.show(table)
    result = (
        f"No: {len(against)} to do." if against else "Yes, as far as can be known on this machine."
    )
    stdout.print(f"Could HEAD be released as {subject.version}? {result}")
    return 1 if against else 0
