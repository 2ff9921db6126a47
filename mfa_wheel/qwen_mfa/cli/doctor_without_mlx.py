"""``qwen-mfa doctor`` where MLX does not work: that is its first finding, and the only one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import qwen_mfa
from qwen_mfa import backend, machine
from qwen_mfa.cli import info

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, which are those of `qwen_mfa.cli.doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--forget", action="store_true", help="nothing is on record without MLX")


def run(args: argparse.Namespace) -> int:
    """Print what can be told. Exit status 2: broken."""
    here, library, problem = machine.read(), info.gather()["library"], backend.problem()
    if args.json:
        report = {
            "status": 2,
            "qwen-mfa": qwen_mfa.__version__,
            "host": asdict(here),
            "library": library,
            "advice": [problem],
        }
        print(json.dumps(report, indent=2))
        return 2
    print(
        f"qwen-mfa {qwen_mfa.__version__}, Python {here.python}\n"
        f"host     {here.system} {here.release}, {here.machine}, {here.chip or 'unknown chip'}\n"
        f"MLX      {here.mlx or 'missing'}: {', '.join(here.backends) or 'no backend installed'}\n"
        f"library  {library['state']}: {library['library']}\n\n"
        f"BROKEN. To do:\n1. {problem}"
    )
    return 2
