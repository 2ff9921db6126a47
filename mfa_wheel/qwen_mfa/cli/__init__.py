"""``qwen-mfa COMMAND``: one module a command, each with HELP, configure and run."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Protocol, cast

import qwen_mfa
from qwen_mfa.errors import QwenMfaError


class Command(Protocol):
    """What a command's module offers."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


COMMANDS = {
    "bench": "qwen_mfa.cli.bench",
    "doctor": "qwen_mfa.cli.doctor",
    "explain": "qwen_mfa.cli.explain",
    "info": "qwen_mfa.cli.info",
    "run": "qwen_mfa.cli.run",
    "selftest": "qwen_mfa.cli.selftest",
}


def _load(name: str) -> Command:
    return cast("Command", importlib.import_module(COMMANDS[name]))


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: the command's; 2 for our own errors and for bad usage."""
    parser = argparse.ArgumentParser(
        prog="qwen-mfa", description="Attention for Qwen-Image in MLX: look at it, check it."
    )
    parser.add_argument("--version", action="version", version=f"qwen-mfa {qwen_mfa.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _load(name)
        module.configure(commands.add_parser(name, help=module.HELP, description=module.__doc__))
    args = parser.parse_args(argv)
    try:
        return _load(args.command).run(args)
    except QwenMfaError as error:
        print(f"qwen-mfa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `qwen-mfa … | head`
        sys.stderr.close()
        return 1
