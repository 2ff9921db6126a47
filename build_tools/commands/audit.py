"""Check wheels and source distributions of this project, without executing anything from them.

Exit status: 0 they keep the contract, 1 findings, 2 a file that cannot be read or is not ours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from build_tools.audit.auditor import audit
from build_tools.audit.findings import ForeignError
from build_tools.audit.report import as_dict, show
from build_tools.support.console import say
from build_tools.wheel.archives import UnreadableError

PASSED, FINDINGS, UNREADABLE = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Audit every file, show the findings, return the exit status."""
    status = PASSED
    documents: list[dict[str, object]] = []
    for path in args.files:
        try:
            report = audit(path)
        except (UnreadableError, ForeignError) as error:
            status = UNREADABLE
            documents.append({"file": path.name, "error": str(error)})
            say(f"error: {error}")
            continue
        if report.findings:
            status = max(status, FINDINGS)
        documents.append(as_dict(report))
        if not args.json:
            show(report)
    if args.json:
        print(json.dumps(documents, indent=2))  # noqa: T201 - a document, not a message
    return status
