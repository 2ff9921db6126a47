"""Make a library fit for a wheel: relative names, no foreign paths, signed ad hoc, stripped.

Works on Mach-O (on any OS) and on ELF (on Linux). The original is not touched.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from build_tools.binaries import elf as elf_reader
from build_tools.binaries import macho as macho_reader
from build_tools.binaries.relocate import elf, macho
from build_tools.support.console import printable, stdout
from build_tools.support.errors import RelocationError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--minimum-os", default="15.0", help="macOS of the wheel's tag")


def run(args: argparse.Namespace) -> int:
    """Relocate a copy, then put it into place."""
    version = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", args.minimum_os)
    if version is None:
        msg = f"--minimum-os {args.minimum_os!r} is not a version such as 15.0"
        raise UsageError(msg)
    target = args.out / args.library.name
    if not args.library.is_file():
        msg = f"{args.library} is no file. Give the path of a library."
        raise UsageError(msg)
    if target.is_dir() or args.library.resolve() == target.resolve():
        msg = f"{target} is the library itself, or a folder; nothing is changed in place."
        raise UsageError(msg)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=args.out) as folder:
        work = Path(shutil.copyfile(args.library, Path(folder) / args.library.name))
        with work.open("rb") as stream:
            head = stream.read(8)
        if elf_reader.is_elf(head):
            elf.relocate(work)
            told = elf.manylinux_tag(work)
        elif macho_reader.is_macho(head):
            macho.embed(work, minimum_os=(int(version[1]), int(version[2])))
            told = macho.platform_tag(work)
        else:
            msg = f"{args.library} is neither an ELF nor a Mach-O file"
            raise RelocationError(msg)
        work.replace(target)
    stdout.print(printable(f"{target}: {told}"))
    return 0
