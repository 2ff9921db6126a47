"""``python -m build_tools COMMAND``: one module a command, each with configure and run."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from typing import Protocol, cast

try:
    from build_tools.support import process
    from build_tools.support.console import say
except ModuleNotFoundError as error:
    missing = f"error: {error}. Set up the clone's environment by `make setup`, then run"
    sys.exit(f"{missing} .venv/bin/python -m build_tools")

from build_tools import commands
from build_tools.support.errors import BuildToolsError
from build_tools.support.paths import ROOT


class Command(Protocol):
    """What a command's module offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


# Only the chosen one is imported, so a missing optional tool breaks one command.
COMMANDS = {
    module.name.replace("_", "-"): f"{commands.__name__}.{module.name}"
    for module in pkgutil.iter_modules(commands.__path__)
    if module.name != "common"
}


def load(name: str) -> Command:
    """Import the module of command ``name``."""
    return cast("Command", importlib.import_module(COMMANDS[name]))


def main(argv: list[str] | None = None) -> int:
    """Parse ``argv``, run one command, and turn our own errors into a line and exit status 1."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m build_tools", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in arguments if word in COMMANDS), None)
    for name in COMMANDS:
        if chosen is None or name == chosen:
            module = load(name)
            about = module.__doc__ or ""
            first = about.partition("\n")[0]
            module.configure(subparsers.add_parser(name, help=first, description=about))
        else:
            subparsers.add_parser(name)
    args = parser.parse_args(arguments)
    log = getattr(args, "log", None) or ROOT / "build" / "logs" / f"{args.command}.log"
    try:
        with process.logging_to(log):
            return load(args.command).run(args)
    except BuildToolsError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
