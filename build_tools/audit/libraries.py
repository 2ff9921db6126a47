"""The native library of a wheel: fit for the tag, alone, hardened, signed, of the declared ABI."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from build_tools.audit.findings import Finding, found
from build_tools.audit.metadata import Identity
from build_tools.binaries import elf, macho, systems
from build_tools.binaries.reader import Malformed
from build_tools.binaries.relocate import adhoc
from build_tools.binaries.relocate.macho import OWN_FOLDER, SWIFT_RUNTIME
from build_tools.source.header import declared as functions
from build_tools.support.errors import RelocationError

TAG = re.compile(r"(?P<system>macosx|manylinux)_(?P<major>\d+)_(?P<minor>\d+)_(?P<machine>\w+)")
# The Metal engine has no portable extension.
ABI, OPTIONAL = ("mfa_",), "mfa_portable_"
MAX_DECLARATIONS = 32_768
SHOWN = 5


def check_library(name: str, data: bytes, identity: Identity, declared: str) -> Iterator[Finding]:
    """Check one library.

    Args:
        name: Its name in the wheel.
        data: Its bytes.
        identity: Whose platform tag it has to fit.
        declared: The C declarations in the wheel.

    """
    tag = TAG.fullmatch(identity.platform or "")
    if tag is None:
        yield found("architecture", name, f"a library in a wheel for {identity.platform}")
        return
    version = (int(tag["major"]), int(tag["minor"]))
    try:
        if tag["system"] == "macosx":
            part = macho.read(data)
            machine, exports = part.architecture, part.exports
            findings = list(_mach(name, data, part, version))
        else:
            facts = elf.read(data)
            machine, exports = facts.machine, facts.exports
            findings = list(_elf(name, facts, version))
    except Malformed as error:
        yield found("library-malformed", name, str(error))
        return
    yield from findings
    if machine != tag["machine"]:
        yield found("architecture", name, f"it is for {machine}, the tag says {tag['machine']}")
    yield from _abi(name, exports, functions(declared[:MAX_DECLARATIONS]))


def _elf(name: str, facts: elf.Elf, version: tuple[int, int]) -> Iterator[Finding]:
    if not facts.library:
        yield found("library-malformed", name, "it is no shared library")
    if facts.soname != posixpath.basename(name):
        yield found("install-name", name, f"its soname is {facts.soname}")
    for path in facts.rpaths:
        yield found("rpath", name, f"run path {path}")
    for library in facts.needed:
        if not systems.on_linux(library):
            yield found("dependency", name, f"it depends on {library}")
    for _, needed in sorted(facts.versions):
        oldest = systems.glibc(needed)
        if oldest is None or oldest > version:
            admitted = ".".join(map(str, version))
            yield found("minimum-os", name, f"it needs {needed}, the tag admits glibc {admitted}")
    defects = {
        "its stack is executable": facts.executable_stack,
        "a segment is writable and executable": facts.writable_executable,
        "the loader must write into code": facts.text_relocations,
        "relocated data stays writable (no relro)": not facts.relro,
        "functions are bound late": not facts.binds_now,
    }
    yield from (found("hardening", name, what) for what, true in defects.items() if true)
    if facts.debug_sections:
        yield found("debug-information", name, "there are .debug sections")


def _mach(name: str, data: bytes, part: macho.MachO, version: tuple[int, int]) -> Iterator[Finding]:
    file = posixpath.basename(name)
    if part.file_type != macho.MH_DYLIB or part.platform != macho.MACOS or not part.minimum_os:
        yield found("library-malformed", name, f"it is no library for macOS ({part.platform})")
    elif part.minimum_os > version:
        needs, admits = (".".join(map(str, each)) for each in (part.minimum_os, version))
        yield found("minimum-os", name, f"it needs macOS {needs}, the tag admits {admits}")
    if part.install_name != f"{OWN_FOLDER}/{file}":
        yield found("install-name", name, f"its install name is {part.install_name}")
    for path in part.rpaths:
        if path not in {SWIFT_RUNTIME, OWN_FOLDER}:
            yield found("rpath", name, f"run path {path}")
    for dependency, _ in part.dependencies:
        swift = dependency.startswith("@rpath/libswift") and SWIFT_RUNTIME in part.rpaths
        if not swift and not systems.on_macos(dependency):
            yield found("dependency", name, f"it depends on {dependency}")
    yield from _mach_memory(name, part)
    # Signing is deterministic, and depends on nothing but the file: a signature fits when signing
    # again changes nothing.
    try:
        signed = part.signature is not None and adhoc.sign(data, identifier=file) == data
    except RelocationError as error:
        yield found("signature", name, str(error))
        return
    if not signed:
        yield found("signature", name, "it is not the one that the file has to have")


def _mach_memory(name: str, part: macho.MachO) -> Iterator[Finding]:
    if part.flags & macho.MH_ALLOW_STACK_EXECUTION:
        yield found("hardening", name, "its stack is executable")
    both = macho.VM_WRITE | macho.VM_EXECUTE
    if any(each.protection & both == both for each in part.segments):
        yield found("hardening", name, "a segment is writable and executable")


def _abi(name: str, exports: frozenset[str], declared: list[str]) -> Iterator[Finding]:
    missing = [each for each in declared if each not in exports and not each.startswith(OPTIONAL)]
    if missing:
        yield found("abi-missing", name, f"it does not export {_some(missing)}")
    # Both engines implement upstream's whole header, of which the package declares what it calls.
    extra = sorted(each for each in exports if not each.startswith(ABI))
    if extra:
        yield found("abi-extra", name, f"it also exports {_some(extra)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
