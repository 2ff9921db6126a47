"""Measure on this machine: ratios taken side by side, with their noise, never a single number.

Not part of the public API: what is here may change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_mfa import backend
from qwen_mfa.cli import add_commands, load

if TYPE_CHECKING:
    import argparse


SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "attention": (
        "qwen_mfa.cli.bench.attention",
        "measure attention for Qwen-Image's shapes or any other",
    ),
    "step": (
        "qwen_mfa.cli.bench.step",
        "measure a step of Qwen-Image, and attention's share of it",
    ),
    "padding": (
        "qwen_mfa.cli.bench.padding",
        "padded text: masked against removed, for MLX alone too",
    ),
    "dispatch": (
        "qwen_mfa.cli.bench.dispatch",
        "measure what dispatch adds to calling MLX directly",
    ),
    "show": ("qwen_mfa.cli.bench.show", "show results again, also those of a run that was killed"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one parser a subcommand."""
    words: list[str] = parser.get_default("words")  # of the command line, set by `add_commands`
    add_commands(parser, "bench", SUBCOMMANDS, words, metavar="WHAT")


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    backend.require()
    return load(SUBCOMMANDS[args.bench][0]).run(args)
