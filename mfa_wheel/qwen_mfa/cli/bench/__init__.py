"""Measure on this machine: ratios taken side by side, with their noise, never a single number."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import argparse

    from qwen_mfa.cli import Command

HELP = "measure attention, a transformer step, or the cost of dispatch"

SUBCOMMANDS: dict[str, str] = {
    "attention": "qwen_mfa.cli.bench.attention",
    "step": "qwen_mfa.cli.bench.step",
    "padding": "qwen_mfa.cli.bench.padding",
    "dispatch": "qwen_mfa.cli.bench.dispatch",
    "show": "qwen_mfa.cli.bench.show",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one parser a subcommand."""
    commands = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for name in SUBCOMMANDS:
        module = _load(name)
        module.configure(commands.add_parser(name, help=module.HELP, description=module.__doc__))


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    return _load(args.bench).run(args)


def _load(name: str) -> Command:
    return cast("Command", importlib.import_module(SUBCOMMANDS[name]))
