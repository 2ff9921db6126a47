"""Compile the real pinned source with our overlay on this machine, against stand-in Apple modules.

Then run upstream's own kernel generator and list the Metal sources that it writes for Qwen-Image,
with their keys in shader packs, and say whether what we rely on holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build_tools.commands import common
from build_tools.native import kernels
from build_tools.support import files, tables
from build_tools.support.console import say, stdout, step
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    import argparse

    from build_tools.native.kernels import Claim, Found
    from build_tools.source.lock import Lock

APPLE9 = 9
SOURCES = ROOT / "build_tools" / "native" / "shader_sources.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``typecheck``."""
    common.add_compiled(parser, "typecheck")
    parser.add_argument(
        "--no-kernels", action="store_true", help="compile only; list no Metal sources"
    )
    parser.add_argument(
        "--sources",
        type=Path,
        default=SOURCES,
        metavar="FILE",
        help="the recorded keys, compared with what is found; default: %(default)s",
    )
    parser.add_argument("--write", action="store_true", help="record the keys anew")


def run(args: argparse.Namespace) -> int:
    """Compile, list, compare."""
    source, library, apple = common.compiled(args)
    lock = source.lock
    say(f"compiled: {lock.name} {lock.upstream.commit[:12]} with the overlay")
    if args.no_kernels:
        return 0
    generator = kernels.Generator(library, apple)
    with step("Metal sources for Qwen-Image"):
        found = kernels.classes(generator)
        claims = kernels.check_claims(generator, found, work=args.work.resolve())
    _print(found, claims)
    record = source_record(lock, found)
    if args.write:
        files.write_json(args.sources, record)
        say(f"wrote {args.sources}")
    else:
        compare(args.sources, record)
        say(f"the keys are those in {args.sources}")
    failed = [claim for claim in claims if not claim.holds]
    if failed:
        msg = "what we rely on does not hold: " + "; ".join(
            f"{claim.text} ({claim.detail})" for claim in failed
        )
        raise BuildError(msg)
    return 0


def _print(found: list[Found], claims: list[Claim]) -> None:
    headings = ("GPU", "input", "intermediate", "variant", "copies", "key", "lengths")
    table = tables.new("Attention sources, by key in shader packs", *headings)
    for entry in found:
        case = entry.item.case
        gpu = "Apple9 and later" if case.family >= APPLE9 else "before Apple9"
        lengths = " ".join(str(length) for length in entry.lengths)
        low = "fp32" if case.intermediate == "fp32" else "low"
        table.add_row(
            gpu, case.input, low, case.variant, str(entry.item.copies), entry.item.key, lengths
        )
    tables.show(table)
    distinct = len({entry.item.key for entry in found})
    stdout.print(f"{distinct} distinct sources")
    for claim in claims:
        mark = "holds" if claim.holds else "DOES NOT HOLD"
        stdout.print(f"{mark}: {claim.text} ({claim.detail})")


def compare(path: Path, record: dict[str, Any]) -> None:
    """Hold the keys that were found against the recorded ones.

    Raises:
        BuildError: They differ, or there is no record.

    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"the recorded keys {path} cannot be read ({error}); record them: --write"
        raise BuildError(msg) from error
    if recorded != record:
        msg = (
            f"the Metal sources are not those that {path} records, so shader packs made for "
            "those would miss. If the change is meant, record it with --write."
        )
        raise BuildError(msg)


def source_record(lock: Lock, found: list[Found]) -> dict[str, Any]:
    """Return what is recorded of the sources by key: a line each, nothing of their text."""
    return {
        "commits": lock.commits,
        "head_dim": kernels.HEAD_DIM,
        "plain_event": files.sha256(kernels.PLAIN_EVENT),
        "scale": kernels.SCALE,
        "sources": {entry.item.key: _described(entry) for entry in found},
    }


def _described(entry: Found) -> str:
    case, lengths = entry.item.case, "/".join(map(str, entry.lengths))
    return (
        f"Apple{case.family} {case.input}/{case.intermediate} {case.variant} at {lengths}, "
        f"text {entry.item.sha256}"
    )
