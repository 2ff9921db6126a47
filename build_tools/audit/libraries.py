"""The checks of every native file of a wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_tools.audit.elf_checks import check_elf
from build_tools.audit.findings import Finding, found
from build_tools.audit.mach_checks import check_macho

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from build_tools.audit.contents import Content
    from build_tools.audit.site import Site


def check_libraries(contents: Mapping[str, Content], site: Site, wheel: str) -> Iterator[Finding]:
    """Check every native file, and whether the tags fit at all."""
    native = [each for each in contents.values() if each.native]
    if native and site.any_platform:
        what = f"{len(native)} native files, the first is {native[0].name}"
        yield found("binary-in-any", wheel, what)
    launchers = any(each.pe for each in contents.values())
    if not native and not launchers and site.promises and not site.any_platform:
        yield found("platform-without-binaries", wheel, "no ELF, Mach-O or PE file is in it")
    for content in contents.values():
        if content.elf is not None:
            yield from check_elf(content, site)
        yield from check_macho(content, site)
        if content.pe is not None and content.pe.library:
            yield from _check_pe(content, site)
        if content.build_paths:
            what = f"{content.build_path_count} such, as {'; '.join(content.build_paths)}"
            yield found("build-path", content.name, what)


def _check_pe(content: Content, site: Site) -> Iterator[Finding]:
    machine = content.pe.machine if content.pe is not None else ""
    tags = {each.tag for each in site.promises}
    if tags and not site.any_platform and machine not in tags:
        what = f"for {machine}, the tag says {', '.join(sorted(tags))}"
        yield found("wrong-platform", content.name, what)
