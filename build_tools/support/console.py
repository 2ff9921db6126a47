"""What the build tools print: progress on a terminal, plain lines elsewhere. All of it on stderr.

Standard output is left to results (tables, JSON), so that they can be piped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

# Not a terminal: no wrapping at 80 columns, no control codes. No brackets are ever markup.
stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
stdout = Console(highlight=False, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """Return ``text`` on one line, with everything escaped that a terminal would act on.

    For what comes from outside: names, subjects of commits, a server's words.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def say(text: str) -> None:
    """Print progress: one line, or several of ours; nothing in it reaches the terminal raw."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)
    stderr.print(shown)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Show ``title`` while the body runs; the body may call the yielded function with details."""
    if not stderr.is_terminal:
        say(f"{title} ...")
        yield lambda _detail: None
        return
    with stderr.status(Text(title)) as status:
        yield lambda detail: status.update(Text(f"{title}: {printable(detail[:100])}"))
    say(f"{title}: done")
