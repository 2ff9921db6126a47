"""Checks of Mach-O files against the wheel's tags, its other files, and macOS's loader."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from build_tools.audit.findings import Finding, found
from build_tools.audit.places import climbs_out, installed, resolve, system_on_macos
from build_tools.binaries import macho

if TYPE_CHECKING:
    from collections.abc import Iterator

    from build_tools.audit.contents import Content, Part
    from build_tools.audit.platforms import Promise
    from build_tools.audit.site import Site

LOADER = ("@loader_path",)
LOADABLE = {macho.MH_DYLIB, macho.MH_BUNDLE, macho.MH_EXECUTE}
SWIFT = "/usr/lib/swift"


def check_macho(content: Content, site: Site) -> Iterator[Finding]:
    """Check every architecture of one file."""
    parts = [part for part in content.macho if part.facts.file_type in LOADABLE]
    if not parts:
        return  # object files and debug companions are data
    wanted = [each for each in site.promises if each.system == "macos"]
    if not wanted:
        if not site.any_platform:
            tags = ", ".join(each.tag for each in site.promises)
            yield found("wrong-platform", content.name, f"a macOS library in a wheel for {tags}")
    else:
        yield from _architectures(content.name, parts, wanted)
    for part in parts:
        yield from _names(content.name, part.facts, site)
        yield from _trust(content.name, part)


def _architectures(name: str, parts: list[Part], wanted: list[Promise]) -> Iterator[Finding]:
    held = {part.facts.architecture for part in parts}
    for architecture in sorted({each.architecture for each in wanted} - held):
        what = f"has {', '.join(sorted(held))}, the tag promises {architecture}"
        yield found("architecture-missing", name, what)
    for part in parts:
        facts = part.facts
        if facts.platform not in {"macos", None}:
            yield found(
                "wrong-platform", name, f"{facts.architecture} is built for {facts.platform}"
            )
            continue
        admitted = [
            each.version
            for each in wanted
            if each.architecture == facts.architecture and each.version
        ]
        if facts.minimum_os is not None and admitted and facts.minimum_os > min(admitted):
            needs, tag = (".".join(map(str, each)) for each in (facts.minimum_os, min(admitted)))
            what = f"{facts.architecture} needs macOS {needs}, the tag admits {tag}"
            yield found("minimum-os", name, what)


def _names(name: str, facts: macho.Slice, site: Site) -> Iterator[Finding]:
    origin = posixpath.dirname(installed(name))
    own = facts.install_name
    if own and own.startswith("/") and not own.startswith("/DLC/") and not system_on_macos(own):
        # /DLC/ is the mark that delocate leaves.
        yield found("install-name", name, f"its install name is {own}")
    for path in dict.fromkeys(facts.rpaths):
        place = resolve(path, origin, LOADER)
        outside = place is not None and climbs_out(place)
        if outside or (place is None and not system_on_macos(path)):
            yield found("rpath-outside", name, f"rpath {path}")
    for dependency, kind in dict.fromkeys(facts.dependencies):
        if dependency != own:
            yield from _dependency(name, dependency, kind, facts, site)


def _dependency(
    name: str, dependency: str, kind: str, facts: macho.Slice, site: Site
) -> Iterator[Finding]:
    if system_on_macos(dependency):
        return
    if dependency.startswith("@rpath/libswift") and SWIFT in facts.rpaths:
        return  # the Swift runtime is part of macOS
    candidates = _candidates(dependency, facts, posixpath.dirname(installed(name)))
    if candidates is None:
        if dependency.startswith(("/", "@")):
            yield found("dependency-outside", name, f"depends on {dependency}")
        else:
            what = f"depends on {dependency}, a name without a path"
            yield found("needs-environment", name, what)
        return
    inside = [each for each in candidates if not climbs_out(each)]
    if any(site.holds(each) for each in inside) or kind == "weak":
        return  # dyld goes on without a weak dependency
    if candidates and not inside:
        yield found("dependency-outside", name, f"depends on {dependency}")
    elif site.elsewhere(dependency):
        yield found("needs-environment", name, f"depends on {dependency}, which no rpath reaches")
    elif inside and site.requires_others:
        yield found("dependency-elsewhere", name, f"depends on {dependency}")
    elif site.requires_others:
        # dyld takes a library of that install name that is loaded already, as torch's is.
        what = f"depends on {dependency}, which another distribution must have loaded before"
        yield found("needs-environment", name, what)
    else:
        yield found("dependency-missing", name, f"depends on {dependency}")


def _candidates(dependency: str, facts: macho.Slice, origin: str) -> list[str] | None:
    """Return where dyld would look inside of site-packages; ``None``: somewhere else."""
    place = resolve(dependency, origin, LOADER)
    if place is not None:
        return [place]
    if not dependency.startswith("@rpath/"):
        return None
    rest = dependency.removeprefix("@rpath/")
    places = [resolve(path, origin, LOADER) for path in facts.rpaths]
    return [posixpath.normpath(posixpath.join(path, rest)) for path in places if path is not None]


def _trust(name: str, part: Part) -> Iterator[Finding]:
    facts = part.facts
    if part.signature_problem:
        yield found("signature-invalid", name, f"{facts.architecture}: {part.signature_problem}")
    elif part.signed is None:
        if facts.architecture == "arm64":
            yield found("signature-missing", name, f"{facts.architecture} is not signed")
    else:
        for problem in part.signed.problems:
            yield found("signature-invalid", name, f"{facts.architecture}: {problem}")
    if facts.flags & macho.MH_ALLOW_STACK_EXECUTION:
        yield found("executable-stack", name, f"{facts.architecture} allows an executable stack")
    both = macho.VM_WRITE | macho.VM_EXECUTE
    for segment in facts.segments:
        if segment.initial_protection & both == both:
            yield found("writable-executable", name, f"segment {segment.name}")
