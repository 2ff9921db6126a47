"""Make libraries fit for a wheel: relative names, no foreign paths, signed ad hoc, thin, stripped.

Works on Mach-O (on any OS) and on ELF (on Linux). The libraries given together are taken to lie
in one folder of the wheel. The originals are not touched.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.binaries import elf as elf_reader
from build_tools.binaries import macho as macho_reader
from build_tools.binaries.relocate import elf, macho
from build_tools.binaries.relocate.errors import RelocationError
from build_tools.support import files
from build_tools.support.console import printable, say, stdout
from build_tools.support.errors import UsageError

if TYPE_CHECKING:
    import argparse

HELP = "make libraries fit to be embedded in a wheel"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minimum-os", default="15.0", help="macOS of the wheel's tag")
    parser.add_argument("--arch", default="arm64", help="architecture to keep of universal files")
    parser.add_argument("--debug", type=Path, help="folder for split-off debug information (ELF)")


def run(args: argparse.Namespace) -> int:
    """Relocate all libraries, then put all results into place."""
    names = [each.name for each in args.libraries]
    if len(set(names)) != len(names):
        msg = "Two libraries have the same name, but they are to lie in one folder."
        raise UsageError(msg)
    version = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", args.minimum_os)
    if version is None:
        msg = f"--minimum-os {args.minimum_os!r} is not a version such as 15.0"
        raise UsageError(msg)
    for library in args.libraries:
        if library.parent.resolve() == args.out.resolve():
            msg = f"{library} lies in the output folder; nothing is changed in place."
            raise UsageError(msg)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=args.out) as folder:
        work, debug = Path(folder), Path(folder) / "debug"
        for library in args.libraries:
            others = frozenset(names) - {library.name}
            _one(library, work / library.name, others, (int(version[1]), int(version[2])), args)
        moves = {work / name: args.out / name for name in names}
        if args.debug is not None and debug.is_dir():
            moves |= {path: args.debug / path.name for path in sorted(debug.iterdir())}
        try:
            files.replace_all(moves)
        except OSError as error:
            msg = f"Nothing was replaced: {error}"
            raise UsageError(msg) from error
    for name in names:
        stdout.print(printable(str(args.out / name)), markup=False)
    return 0


def _one(
    source: Path,
    target: Path,
    companions: frozenset[str],
    minimum_os: tuple[int, int],
    args: argparse.Namespace,
) -> None:
    data = macho.read_library(source)
    if elf_reader.is_elf(data[:4]):
        shutil.copyfile(source, target)
        debug = target.parent / "debug" if args.debug is not None else None
        elf.relocate(target, companions=sorted(companions), debug=debug)
        say(f"{printable(source.name)}: ELF, {elf.manylinux_tag(target)}")
    elif macho_reader.is_macho(data[:8]):
        result = macho.relocate(
            data,
            filename=source.name,
            companions=companions,
            minimum_os=minimum_os,
            architecture=args.arch,
        )
        target.write_bytes(result)
        target.chmod(0o755)
        macho.confirm_signature(target)
        say(f"{printable(source.name)}: Mach-O, {args.arch}, signed ad hoc")
    else:
        msg = f"{printable(str(source))} is neither an ELF nor a Mach-O file"
        raise RelocationError(msg)
