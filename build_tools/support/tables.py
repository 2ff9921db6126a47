"""Tables on standard output: as wide as the terminal (or COLUMNS), wide enough elsewhere."""

from __future__ import annotations

import os

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
    """Print ``table``."""
    # rich reads COLUMNS by itself; without it, a file would get 80 columns.
    narrow = stdout.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    console = Console(highlight=False) if narrow else Console(width=WIDE, highlight=False)
    console.print(table)
