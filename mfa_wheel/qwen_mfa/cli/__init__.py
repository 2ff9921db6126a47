"""``qwen-mfa COMMAND``: one module a command, each with HELP, configure and run.

Only the command that is asked for is imported, and MLX with it: the rest works without.
argparse, since a library (click took three times as long to import) would add to the start of every
command, and nothing here needs one.

Not part of the public API: what is here may change in any release.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from qwen_mfa import backend, settings
from qwen_mfa.errors import QwenMfaError

TYPE_CHECKING = False  # as type checkers know it, without the cost of importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    class Command(Protocol):
        """What a command's module offers."""

        def configure(self, parser: argparse.ArgumentParser) -> None:
            """Add the command's own arguments."""

        def run(self, args: argparse.Namespace) -> int:
            """Do the work and return the exit status."""


# Module and one line of help. Those without a need for MLX are told apart.
COMMANDS = {
    "bench": ("qwen_mfa.cli.bench", "measure attention, a transformer step, or dispatch's cost"),
    "doctor": (
        "qwen_mfa.cli.doctor",
        "check this installation and say what would make it faster",
    ),
    "explain": ("qwen_mfa.cli.explain", "show what runs for one problem, and why"),
    "info": (
        "qwen_mfa.cli.info",
        "show the library, how it was built, and the versions in use",
    ),
    "run": (
        "qwen_mfa.cli.run",
        "run a program (mflux-generate-qwen, …) with the mflux integration",
    ),
    "selftest": (
        "qwen_mfa.cli.selftest",
        "check the kernel against float64 and MLX on Qwen-Image's attention",
    ),
}
# What stands in where MLX does not work.
WITHOUT_MLX = {"bench": "qwen_mfa.cli.bench", "info": "qwen_mfa.cli.info"}
DOCTOR_WITHOUT_MLX = "qwen_mfa.cli.doctor_without_mlx"


class _Version(argparse.Action):
    """Print the version; asked for only then, since that takes longer than all else."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import qwen_mfa  # noqa: PLC0415

        print(f"qwen-mfa {qwen_mfa.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: the command's; 2 for our own errors and for bad usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            status = _run(words)
        finally:  # after --help, too, which ends in SystemExit
            if words[:1] != ["run"]:  # its streams are its program's own
                sys.stdout.flush()
    except QwenMfaError as error:
        print(f"qwen-mfa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `qwen-mfa … | head`
        _drop_output()
        return 1
    except OSError as error:
        print(f"qwen-mfa: {error}", file=sys.stderr)
        _drop_output()
        return 1
    return status


def parser_for(words: list[str]) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the command that ``words`` name."""
    parser = argparse.ArgumentParser(
        prog="qwen-mfa", description="Attention for Qwen-Image in MLX: look at it, check it."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    add_commands(parser, "command", COMMANDS, words, metavar="COMMAND")
    return parser


def _run(words: list[str]) -> int:
    args = parser_for(words).parse_args(words)
    said = settings.current()  # a typo in a variable is told by every command, first
    if (said.library is not None or said.isa) and args.command != "info":  # which tells in its way
        from qwen_mfa.native import library  # noqa: PLC0415 - seldom set

        library.check_what_is_set()
    if args.command == "doctor" and backend.problem():
        return load(DOCTOR_WITHOUT_MLX).run(args)
    if args.command not in WITHOUT_MLX:
        backend.require()
    return load(COMMANDS[args.command][0]).run(args)


def add_commands(
    parser: argparse.ArgumentParser,
    dest: str,
    commands: Mapping[str, tuple[str, str]],
    words: list[str],
    *,
    metavar: str,
) -> None:
    """Add one parser a command; only those that ``words`` name get their arguments."""
    group = parser.add_subparsers(dest=dest, required=True, metavar=metavar)
    for name, (module, text) in commands.items():
        if name not in words:
            group.add_parser(name, help=text)
            continue
        if name in WITHOUT_MLX or not backend.problem():
            found = load(module)
            child = group.add_parser(name, help=text, description=found.__doc__)
            child.set_defaults(words=words)
            found.configure(child)
        elif name == "doctor":
            found = load(DOCTOR_WITHOUT_MLX)
            found.configure(group.add_parser(name, help=text, description=_description(module)))
        else:  # its arguments cannot be told; what it is for can
            child = group.add_parser(
                name, help=text, description=_description(module), epilog=backend.problem()
            )
            child.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def load(module: str) -> Command:
    """Import a command."""
    found: Any = importlib.import_module(module)
    command: Command = found
    return command


def _description(module: str) -> str | None:
    """Read a module's docstring without importing it."""
    import ast  # noqa: PLC0415 - seldom needed, as the next two
    import importlib.util  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


def _drop_output() -> None:
    """Let the interpreter find nothing to flush that cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
