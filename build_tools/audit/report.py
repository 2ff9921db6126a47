"""Show audits: a table for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from build_tools.audit.auditor import Report

WIDTH = 220
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def as_dict(report: Report) -> dict[str, object]:
    """Return one report for JSON."""
    return {
        "wheel": report.path.name,
        "sha256": report.sha256,
        "passed": not report.failed,
        "summary": _counts(report),
        "findings": [finding.as_dict() for finding in report.findings],
        "libraries": list(report.libraries),
    }


def show(report: Report, console: Console) -> None:
    """Print the table of findings and a line of summary."""
    if not console.is_terminal:
        # Piped into a file there is no width to obey, and 80 columns would fold every word.
        console = Console(file=console.file, width=WIDTH, highlight=False, soft_wrap=True)
    name = escape(report.path.name)
    if report.findings:
        table = Table(title=name, title_justify="left", expand=False)
        for heading in ("severity", "code", "file", "what", "how to mend"):
            table.add_column(heading, overflow="fold")
        for finding in report.findings:
            severity = finding.severity.value
            table.add_row(
                f"[{COLOURS[severity]}]{severity}[/]",
                finding.code,
                escape(finding.file),
                escape(finding.what),
                escape(finding.mend),
            )
        console.print(table)
    counts = _counts(report)
    told = ", ".join(f"{count} {_plural(word, count)}" for word, count in counts.items() if count)
    verdict = "[bold red]findings[/]" if report.failed else "[green]passed[/]"
    console.print(f"{name}: {verdict}: {told or 'nothing found'}")


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _counts(report: Report) -> dict[str, int]:
    counter = Counter(finding.severity.value for finding in report.findings)
    return {word: counter[word] for word in COLOURS}
