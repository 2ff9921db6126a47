"""Text that somebody else wrote, fit to be shown."""

from __future__ import annotations

MAX_SHOWN = 400


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Return ``text`` on one line, without control characters or lone surrogates, cut at ``limit``.

    Names from archives, paths and the contents of files go through here before they are printed:
    an escape sequence cannot steer the terminal, and a newline cannot forge a line of ours.
    """
    safe = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text[:limit]
    )
    return safe + ("…" if len(text) > limit else "")
