"""Shader packs: record the sources that Qwen-Image needs, compile them on a Mac, verify a pack.

``record`` runs wherever ``typecheck`` does (upstream's own generator, against stand-in Apple
modules); ``try`` and ``pack`` need a Mac with the Metal toolchain, but no GPU; ``verify`` runs
anywhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from build_tools.commands import common
from build_tools.native import kernels, metal_in_process, shader_compiler, shaders
from build_tools.native.kernels import Found
from build_tools.native.shader_compiler import Outcome
from build_tools.support.console import say, stdout, step
from build_tools.support.errors import ShaderError

# As upstream asks, with the math mode that our overlay always says. The functions are the system's
# default; a key that a Mac asks for says whether that holds.
OPTIONS = "language=3.2 math=relaxed functions=fast optimization=default invariance=no macros="


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``record``, ``pack`` and ``verify``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    record = actions.add_parser("record", help="write the sources (anywhere with Swift)")
    record.add_argument("folder", type=Path, help="new folder for the sources")
    common.add_compiled(record, "typecheck")
    pack = actions.add_parser("pack", help="compile a record (a Mac with the Metal toolchain)")
    pack.add_argument("record", type=Path, help="folder that `record` wrote")
    pack.add_argument("folder", type=Path, help="new folder for the pack")
    pack.add_argument("--xcrun", default="/usr/bin/xcrun", help="default: %(default)s")
    common.add_log(pack)
    attempt = actions.add_parser("try", help="which sources Apple's compilers accept (a Mac)")
    attempt.add_argument("record", type=Path, help="folder that `record` wrote")
    attempt.add_argument("--xcrun", default="/usr/bin/xcrun", help="default: %(default)s")
    attempt.add_argument(
        "--in-process", action="store_true", help="by the run-time compiler of this Mac, too"
    )
    common.add_log(attempt)
    verify = actions.add_parser("verify", help="check a pack, and what it covers")
    verify.add_argument("folder", type=Path, help="the pack")
    verify.add_argument("--record", type=Path, help="the sources that it must cover")
    verify.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE",
        help="of `qwen-mfa selftest --metal`: every shader that this Mac asked for must be covered",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Do one of the four."""
    actions = {"record": _record, "try": _try, "pack": _pack, "verify": _verify}
    return actions[args.action](args)


def _record(args: argparse.Namespace) -> int:
    source, library, apple = common.compiled(args)
    with step("Metal sources for Qwen-Image"):
        found = kernels.classes(kernels.Generator(library, apple))
    made = write(args.folder, source.lock.commits, found)
    say(f"{len(made.sources)} sources in {args.folder}")
    return 0


def write(folder: Path, commits: dict[str, str], found: list[Found]) -> shaders.Record:
    """Write what upstream's generator gave as a record."""
    sources = {}
    for entry in found:
        case, item = entry.item.case, entry.item
        if shaders.key_of(OPTIONS, item.source) != item.key:
            msg = (
                f"{case}: the library asks for key {item.key}, which is not that of its source "
                f"with {OPTIONS!r}: upstream's compile options have changed"
            )
            raise ShaderError(msg)
        described = shaders.Source(
            key=item.key,
            family=case.family,
            input=case.input,
            intermediate=case.intermediate,
            variant=case.variant,
            lengths=entry.lengths,
            sha256=item.sha256,
        )
        sources[described] = item.source
    return shaders.write_record(folder, commits=commits, options=OPTIONS, sources=sources)


def _try(args: argparse.Namespace) -> int:
    """Tell what becomes of each source; only a plain variant that does not compile is an error.

    macOS 26 is reported to reject upstream's form, which is what the plain one is for.
    """
    record = shaders.load_record(args.record)
    asked = [shader_compiler.attempt(record, xcrun=args.xcrun)]
    if args.in_process:
        runtime = metal_in_process.compiler(record.options)
        if runtime is None:
            say("there is no Metal device: not tried in this process")
        else:
            asked.append((f"in process, {runtime.name}", _in_process(record, runtime)))
    for name, outcomes in asked:
        stdout.print(f"### {name}\n")
        for each in outcomes:
            stdout.print(f"- {each}")
        stdout.print()
    broken = [
        f"{name}: {each}"
        for name, outcomes in asked
        for each in outcomes
        if each.error is not None and each.source.variant == "plain"
    ]
    if broken:
        listed = "".join(f"\n  {text}" for text in broken)
        msg = f"plain variants that do not compile:{listed}"
        raise ShaderError(msg)
    return 0


def _in_process(record: shaders.Record, runtime: metal_in_process.Compiler) -> list[Outcome]:
    return [
        shader_compiler.Outcome(source=source, error=runtime.error(record.text(source)))
        for source in record.sources
    ]


def _pack(args: argparse.Namespace) -> int:
    record = shaders.load_record(args.record)
    left_out = shader_compiler.pack(record, args.folder, xcrun=args.xcrun)
    for text in left_out:
        say(f"left out (its other variant compiles): {text}")
    stdout.print(f"{args.folder}: {len(record.sources) - len(left_out)} libraries")
    return 0


def _verify(args: argparse.Namespace) -> int:
    libraries = shaders.load_pack(args.folder)["libraries"]
    missing = []
    if args.record is not None:
        missing += shaders.uncovered(libraries, shaders.load_record(args.record).sources)
    for path in args.report:
        missing += [f"{key}, asked for in {path}" for key in _asked(path) if key not in libraries]
    if missing:
        listed = "".join(f"\n  {text}" for text in missing)
        msg = f"the pack {args.folder} does not cover:{listed}"
        raise ShaderError(msg)
    stdout.print(f"{args.folder}: {len(libraries)} libraries, sound")
    return 0


def _asked(path: Path) -> list[str]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return [str(origin["key"]) for origin in report["sections"]["validation"]["origins"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no report with shader origins ({error!r})"
        raise ShaderError(msg) from error
