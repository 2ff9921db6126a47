"""Show audits: a table for people, a document for programs."""

from __future__ import annotations

from dataclasses import asdict

from rich.markup import escape

from build_tools.audit.auditor import Report
from build_tools.support import tables
from build_tools.support.console import printable, stdout


def as_dict(report: Report) -> dict[str, object]:
    """Return one report for JSON."""
    return {
        "file": report.path.name,
        "sha256": report.sha256,
        "passed": not report.findings,
        "findings": [asdict(finding) for finding in report.findings],
    }


def show(report: Report) -> None:
    """Print the table of findings and a line of summary."""
    name = printable(report.path.name)
    count = len(report.findings)
    if count:
        table = tables.new(escape(name), "code", "file", "what", "how to mend")
        for each in report.findings:
            table.add_row(each.code, escape(each.file), escape(each.what), escape(each.mend))
        tables.show(table)
    result = f"{count} finding{'s' if count > 1 else ''}" if count else "passed"
    stdout.print(f"{name}: {result}")
