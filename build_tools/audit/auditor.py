"""Audit one wheel: open it, read it once, run every check, apply a policy."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from build_tools.audit.archive import CHUNK, ZIP_ERRORS, Archive, open_archive
from build_tools.audit.contents import Content, read_contents
from build_tools.audit.findings import Finding, Severity, UnreadableWheelError
from build_tools.audit.libraries import check_libraries
from build_tools.audit.metadata import (
    Sources,
    check_entry_points,
    check_metadata,
    check_wheel_file,
    dist_info,
    entry_point_modules,
    identify,
    requires_dist,
)
from build_tools.audit.names import check_canonical, check_names
from build_tools.audit.packs import check_packs, indexes
from build_tools.audit.platforms import promises
from build_tools.audit.policy import Policy
from build_tools.audit.record import check_record
from build_tools.audit.sboms import check_sboms
from build_tools.audit.site import site_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LARGEST_SOURCE = 4 * 1024 * 1024
MOST_FINDINGS = 1000  # of one code; more say nothing new
ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The audit of one wheel."""

    path: Path
    sha256: str
    findings: tuple[Finding, ...]
    libraries: tuple[dict[str, object], ...]  # facts of each native file, for JSON

    @property
    def failed(self) -> bool:
        """Whether an error or a warning was found; notes do not count."""
        return any(each.severity is not Severity.NOTE for each in self.findings)


def audit(path: Path, policy: Policy | None = None) -> Report:
    """Audit the wheel at ``path``; nothing of it is executed, imported or unpacked to disk.

    Raises:
        UnreadableWheelError: The file cannot be read, or is no zip file.

    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            msg = f"{path} is {kind}. Give the path of a .whl file."
            raise UnreadableWheelError(msg)
        with path.open("rb") as file:
            return _audit(path, file, policy or Policy())
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise UnreadableWheelError(msg) from error


def _audit(path: Path, file: BinaryIO, policy: Policy) -> Report:
    archive = open_archive(path, file)
    with archive.zip:
        contents, problems = read_contents(archive, policy.texts)
        findings = [*archive.findings, *problems, *_check(archive, contents)]
        if archive.readable:
            findings += policy.demands(contents, path.name)
    kept = sorted(
        _thinned(policy.apply(findings)),
        key=lambda each: (ORDER[each.severity], each.code, each.file, each.what),
    )
    return Report(
        path=path,
        sha256=_sha256(file),
        findings=tuple(dict.fromkeys(kept)),
        libraries=tuple(fact for each in contents.values() for fact in _facts(each)),
    )


def _check(archive: Archive, contents: Mapping[str, Content]) -> Iterator[Finding]:
    wheel = archive.path.name
    yield from check_names(archive)
    yield from check_canonical(archive)
    identity, problems = identify(wheel)
    yield from problems
    names = [info.filename for info in archive.entries]
    folder, problems = dist_info(names, identity, wheel)
    yield from problems
    if not archive.readable:
        return
    if folder:
        yield from check_record(archive, contents, folder)
        yield from check_wheel_file(contents, folder, identity)
        yield from check_metadata(contents, folder, identity)
        sources = Sources(contents, _texts(archive, entry_point_modules(contents, folder)))
        yield from check_entry_points(contents, folder, sources)
        yield from check_sboms(contents, folder)
    yield from check_packs(contents, _texts(archive, indexes(contents)))
    others = bool(folder) and requires_dist(contents, folder)
    site = site_of(contents, promises(identity.platforms), requires_others=others)
    yield from check_libraries(contents, site, wheel)


def _texts(archive: Archive, names: set[str]) -> dict[str, bytes]:
    texts = {}
    for info in archive.files:
        if info.filename in names and info.file_size <= LARGEST_SOURCE:
            try:
                texts[info.filename] = b"".join(archive.chunks(info))
            except ZIP_ERRORS:
                continue
    return texts


def _thinned(findings: Iterator[Finding]) -> Iterator[Finding]:
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.code] = counts.get(finding.code, 0) + 1
        if counts[finding.code] <= MOST_FINDINGS:
            yield finding


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(CHUNK):
        digest.update(piece)
    return digest.hexdigest()


def _facts(content: Content) -> Iterator[dict[str, object]]:
    if content.elf is not None:
        glibc = [version for _, version in content.elf.versions if version.startswith("GLIBC_")]
        yield {
            "file": content.name,
            "format": "ELF",
            "architecture": content.elf.machine,
            "needs": list(content.elf.needed),
            "rpaths": list(content.elf.rpaths),
            "glibc": max(glibc, key=_version_key, default=None),
            "exports": len(content.elf.exports),
        }
    for part in content.macho:
        facts = part.facts
        yield {
            "file": content.name,
            "format": "Mach-O",
            "architecture": facts.architecture,
            "needs": [name for name, _ in facts.dependencies],
            "rpaths": list(facts.rpaths),
            "minimum_os": ".".join(map(str, facts.minimum_os)) if facts.minimum_os else None,
            "signature": part.signed.kind if part.signed else None,
            "exports": len(facts.exports),
        }
    if content.pe is not None:
        yield {"file": content.name, "format": "PE", "architecture": content.pe.machine}


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split("_", 1)[-1].split(".") if each.isdecimal())
