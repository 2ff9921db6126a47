"""Check wheels, of any project and platform, without executing anything from them.

Exit status: 0 nothing found (notes aside), 1 findings, 2 a file that cannot be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.audit import policy as policies
from build_tools.audit.auditor import audit
from build_tools.audit.findings import UnreadableWheelError
from build_tools.audit.report import as_dict, show
from build_tools.support.console import say, stdout

if TYPE_CHECKING:
    import argparse

HELP = "check any wheel: contents, libraries, signatures, metadata"
PASSED, FINDINGS, UNREADABLE = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--policy", type=Path, metavar="FILE", help="a TOML file; see the docs")
    choice.add_argument("--strict", action="store_true", help="the policy of our own wheels")


def run(args: argparse.Namespace) -> int:
    """Audit every wheel, show the findings, return the exit status."""
    policy = policies.strict() if args.strict else policies.Policy()
    if args.policy is not None:
        policy = policies.load(args.policy)
    status = PASSED
    documents: list[dict[str, object]] = []
    for wheel in args.wheels:
        try:
            report = audit(wheel, policy)
        except UnreadableWheelError as error:
            status = UNREADABLE
            documents.append({"wheel": wheel.name, "error": str(error)})
            say(f"error: {error}")
            continue
        if report.failed:
            status = max(status, FINDINGS)
        documents.append(as_dict(report))
        if not args.json:
            show(report, stdout)
    if args.json:
        print(json.dumps(documents, indent=2))  # noqa: T201 - a document, not a message
    return status
