"""Kinds of arguments that commands share, and the error of arguments that do not go together."""

from __future__ import annotations

import argparse
import tempfile
from typing import TYPE_CHECKING

from qwen_mfa.errors import QwenMfaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


class UsageError(QwenMfaError):
    """Arguments do not go together."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            msg = f"{text!r} is no whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return read


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a reader of one of ``names``, or of several with commas between."""
    known = list(names)

    def read(text: str) -> list[str]:
        found = text.split(",")
        unknown = [name for name in found if name not in known]
        if unknown:
            msg = f"{unknown[0]!r} is none of {', '.join(known)}"
            raise argparse.ArgumentTypeError(msg)
        return found

    return read


def check_writable(path: Path) -> None:
    """Make the folder of ``path``, and find out before a long run that it cannot be written to.

    Raises:
        UsageError: It cannot, or ``path`` is a folder.

    """
    if path.is_dir():
        msg = f"{path} is a folder: name a file"
        raise UsageError(msg)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        msg = f"{path} cannot be written ({error}): name another file"
        raise UsageError(msg) from error
