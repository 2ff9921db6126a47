"""``mflux-generate-qwen-mfa``: mflux's own command for Qwen-Image, with this package's attention.

The same as ``qwen-mfa run -- mflux-generate-qwen``, under a name by which mflux finds it: its
``mflux-capabilities`` lists installed commands that begin with ``mflux-generate``, whosever they
are, and reads what this module says about options, which is what mflux's own says. Under
``mflux.extras``, where mflux's plugins have their code, it would have to be a package of its own: a
wheel that brings a folder ``mflux`` makes ``import mflux`` find something where there is no mflux.
"""

from __future__ import annotations

import importlib
import sys

COMMAND = "mflux-generate-qwen"
MODULE = "mflux.models.qwen.cli.qwen_image_generate"
# What mflux's lists ask a command's module for.
_ASKED = {"build_parser", "IGNORED_OPTIONS", "CONDITIONAL_OPTIONS", "REJECTED_OPTIONS"}


def main() -> int:
    """Run the command; return its exit status."""
    from qwen_mfa import cli  # noqa: PLC0415 - not for a list of commands

    return cli.main(["run", "--", COMMAND, *sys.argv[1:]])


def __getattr__(name: str) -> object:
    """Answer as mflux's own module does, which need not know all of it."""
    if name in _ASKED:
        found: object = getattr(importlib.import_module(MODULE), name)
        return found
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
