"""Tables for people: as wide as the terminal, and wide enough where there is none."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from build_tools.support.console import stdout

WIDE = 160


def new(title: str, *headings: str) -> Table:
    """Return an empty table."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print ``table`` on standard output."""
    console = stdout if stdout.is_terminal else Console(width=WIDE, highlight=False)
    console.print(table)
