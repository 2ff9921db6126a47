"""What the benchmarks' command lines share."""

from __future__ import annotations

import argparse
import sys


class Progress:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, detail: str) -> None:
        """Show ``detail``; an empty one clears the line."""
        if sys.stderr.isatty():
            text = f"{self._what}: {detail}" if detail else ""
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def count(text: str) -> int:
    """Read a number of rounds, blocks or tokens."""
    value = int(text)
    if not 1 <= value <= 1000:
        msg = "give a number from 1 to 1000"
        raise argparse.ArgumentTypeError(msg)
    return value
