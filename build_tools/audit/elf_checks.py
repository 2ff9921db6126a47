"""Checks of ELF files against the wheel's tags, its other files, and the Linux loader."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from build_tools.audit.findings import Finding, found
from build_tools.audit.places import climbs_out, installed, resolve
from build_tools.audit.platforms import linux_policy
from build_tools.binaries.elf import ET_DYN, ET_EXEC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from build_tools.audit.contents import Content
    from build_tools.audit.platforms import Promise
    from build_tools.audit.site import Site
    from build_tools.binaries.elf import Elf

ORIGIN = ("$ORIGIN", "${ORIGIN}")
LINUX = {"glibc", "musl", "linux"}
VERSION = re.compile(r"([A-Z][A-Za-z]*)_(\d+(?:\.\d+)*)")
# The kernel's page of fast system calls, and loaders, which auditwheel's lists name per version.
ALWAYS = re.compile(r"ld-linux.*|ld64\.so\.\d|ld-musl-.*|linux-vdso\.so\.1")
SYSTEM_RPATHS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


def check_elf(content: Content, site: Site) -> Iterator[Finding]:
    """Check one ELF file."""
    facts = content.elf
    if facts is None or facts.file_type not in {ET_DYN, ET_EXEC}:
        return  # object files are data
    name = content.name
    linux = [each for each in site.promises if each.system in LINUX]
    known = [each for each in site.promises if each.system != "other"]
    if known and not linux and not site.any_platform:
        tags = ", ".join(each.tag for each in known)
        yield found("wrong-platform", name, f"a Linux library in a wheel for {tags}")
    architectures = {each.architecture for each in linux}
    if architectures and facts.machine not in architectures:
        what = f"for {facts.machine}, the tag says {', '.join(sorted(architectures))}"
        yield found("wrong-platform", name, what)
    if facts.dynamic:
        for promise in linux:
            yield from _versions(name, facts, promise)
        yield from _paths(name, facts)
        for library in dict.fromkeys(facts.needed):
            yield from _dependency(name, library, facts, linux, site)
    yield from _hardening(name, facts)


def _versions(name: str, facts: Elf, promise: Promise) -> Iterator[Finding]:
    libc = {library for library, version in facts.versions if version.startswith("GLIBC_")}
    if promise.system == "musl":
        if libc or "libc.so.6" in facts.needed:
            yield found("wrong-platform", name, f"needs glibc, the tag is {promise.tag}")
        return
    if promise.system == "linux" or promise.version is None:
        return
    if any(library.startswith("libc.musl-") for library in facts.needed):
        yield found("wrong-platform", name, f"needs musl, the tag is {promise.tag}")
    policy = linux_policy("glibc", promise.architecture, promise.version)
    for _, version in sorted(facts.versions):
        match = VERSION.fullmatch(version)
        if match is None:
            continue
        family, number = match[1], match[2]
        if family == "GLIBC":
            parts = tuple(int(each) for each in number.split("."))
            bad = parts[:2] > promise.version
        else:
            held = policy.symbol_versions.get(family) if policy is not None else None
            bad = held is not None and number not in held
        if bad:
            yield found("symbol-version", name, f"needs {version}, the tag is {promise.tag}")


def _paths(name: str, facts: Elf) -> Iterator[Finding]:
    origin = posixpath.dirname(installed(name))
    if facts.soname is not None and "/" in facts.soname:
        yield found("install-name", name, f"its soname is {facts.soname}")
    for path in dict.fromkeys(filter(None, facts.rpaths)):
        place = resolve(path, origin, ORIGIN)
        if (place is None and path.rstrip("/") not in SYSTEM_RPATHS) or (
            place is not None and climbs_out(place)
        ):
            yield found("rpath-outside", name, f"rpath {path}")


def _dependency(
    name: str, library: str, facts: Elf, linux: list[Promise], site: Site
) -> Iterator[Finding]:
    origin = posixpath.dirname(installed(name))
    if "/" in library:
        place = resolve(library, origin, ORIGIN)
        if place is None or climbs_out(place):
            yield found("dependency-outside", name, f"depends on {library}")
            return
        if site.holds(place):
            return
    places = [resolve(path, origin, ORIGIN) for path in facts.rpaths]
    inside = [posixpath.normpath(f"{each}/{library}") for each in places if each is not None]
    inside = [each for each in inside if not climbs_out(each)]
    if any(site.holds(each) for each in inside) or ALWAYS.fullmatch(library):
        return
    if site.elsewhere(library):
        yield found("needs-environment", name, f"depends on {library}, which no rpath reaches")
        return
    if _on_the_system(library, facts, linux):
        return
    if site.requires_others and inside:
        yield found("dependency-elsewhere", name, f"depends on {library}")
    elif site.requires_others:
        # The loader takes a library of that soname that is loaded already, as torch's is.
        what = f"depends on {library}, which another distribution must have loaded before"
        yield found("needs-environment", name, what)
    else:
        promised = any(each.system != "linux" for each in linux)
        code = "dependency-missing" if promised else "dependency-elsewhere"
        yield found(code, name, f"depends on {library}")


def _on_the_system(library: str, facts: Elf, linux: list[Promise]) -> bool:
    """Say whether every system that the tags admit has ``library``."""
    promised = [each for each in linux if each.system != "linux"]
    policies = [linux_policy(each.system, each.architecture, each.version) for each in promised]
    if not promised:
        # A plain linux tag promises nothing; what manylinux lists is safe to expect.
        policies = [linux_policy("glibc", facts.machine, None)]
    known = [policy for policy in policies if policy is not None]
    return all(library in policy.whitelist for policy in known)


def _hardening(name: str, facts: Elf) -> Iterator[Finding]:
    if facts.executable_stack and facts.dynamic:
        yield found("executable-stack", name, "PT_GNU_STACK is executable, or there is none")
    if facts.writable_executable:
        yield found("writable-executable", name, "a loaded segment may be written and run")
    if facts.text_relocations:
        yield found("text-relocations", name, "DT_TEXTREL is set")
    if facts.dynamic and not facts.relro:
        yield found("no-relro", name, "there is no PT_GNU_RELRO")
    elif facts.dynamic and not facts.binds_now:
        yield found("lazy-binding", name, "neither DF_BIND_NOW nor DF_1_NOW is set")
    if facts.debug_sections:
        yield found("debug-information", name, "there are .debug sections")
