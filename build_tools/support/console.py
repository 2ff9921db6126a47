"""What the build tools print: progress on a terminal, plain lines elsewhere. All of it on stderr.

Standard output is left to results (tables, JSON), so that they can be piped.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Not a terminal: no wrapping at 80 columns, no control codes.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line of progress."""
    stderr.print(text, markup=False)


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Show ``title`` while the body runs; the body may call the yielded function with details."""
    if not stderr.is_terminal:
        say(f"{title} ...")
        yield lambda _detail: None
        return
    with stderr.status(title) as status:
        yield lambda detail: status.update(f"{title}: {detail[:100]}")
    say(f"{title}: done")
