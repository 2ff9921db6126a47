"""Audit one archive of this project: read it once, and hold it against the contract."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from build_tools.audit.contents import LIBRARY, check_sdist, check_wheel
from build_tools.audit.findings import AuditError, Finding, ForeignError, found
from build_tools.audit.libraries import check_library
from build_tools.audit.metadata import Identity, check_metadata, check_wheel_file
from build_tools.support.console import printable
from build_tools.wheel import archives, canonical, manifest
from build_tools.wheel.archives import Archive

MAX_FINDINGS = 200
SDIST = re.compile(rf"{manifest.PACKAGE}-(?P<version>[0-9][0-9A-Za-z.]*)\.tar\.gz")
# The field's tool for the wheels of others, by how the platform of the tag starts.
TOOLS = {
    "macosx": "`delocate-listdeps --all`",
    "manylinux": "`auditwheel show`",
    "musllinux": "`auditwheel show`",
    "linux": "`auditwheel show`",
    "win": "`delvewheel show`",
}
GENERAL = "`check-wheel-contents` and `twine check --strict`"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The audit of one archive."""

    path: Path
    sha256: str
    findings: tuple[Finding, ...]


def audit(path: Path) -> Report:
    """Audit the archive at ``path``; nothing of it is executed, imported or unpacked to disk.

    Raises:
        ForeignError: By its name it is not of this project.
        UnreadableError: It is no archive that may be read.

    """
    identity = identify(path.name)
    archive = archives.read(path)
    findings = islice(_check(path.name, archive, identity), MAX_FINDINGS)
    return Report(
        path=path,
        sha256=hashlib.sha256(archive.data).hexdigest(),
        findings=tuple(dict.fromkeys(findings)),
    )


def require(path: Path) -> None:
    """Return when the archive at ``path`` keeps the contract.

    Raises:
        AuditError: It does not; with every finding, and how to mend it.

    """
    report = audit(path)
    if report.findings:
        lines = [f"  {f.code}: {f.file}: {f.what}. {f.mend}" for f in report.findings]
        msg = f"{printable(path.name)} fails the audit:\n" + "\n".join(lines)
        raise AuditError(msg)


def identify(name: str) -> Identity:
    """Take the file name apart; raise `ForeignError` when it is not one of this project."""
    if match := SDIST.fullmatch(name):
        return Identity(version=match["version"], platform=None)
    tool = GENERAL
    try:
        project, version, _, tags = parse_wheel_filename(name)
    except InvalidWheelFilename:
        pass
    else:
        platforms = sorted(tag.platform for tag in tags)
        if project == "qwen-mfa" and {(t.interpreter, t.abi) for t in tags} == {("py3", "none")}:
            return Identity(version=str(version), platform=".".join(platforms))
        tool = next((t for k, t in TOOLS.items() if platforms[0].startswith(k)), GENERAL)
    msg = f"{printable(name)} is not a file of this project; for others there is {tool}."
    raise ForeignError(msg)


def _check(name: str, archive: Archive, identity: Identity) -> Iterator[Finding]:
    entries = archive.entries
    if identity.platform is None:
        yield from check_sdist(archive, identity)
    else:
        yield from check_wheel(archive, identity)
        yield from check_wheel_file(archive, identity)
        for file in sorted(entries):
            if file.startswith(LIBRARY):
                declared = archive.text(manifest.DECLARATIONS)
                yield from check_library(file, entries[file].content, identity, declared)
    yield from check_metadata(archive, identity)
    pack = canonical.pack_sdist if identity.platform is None else canonical.pack_wheel
    moment = min(max(archive.moment, canonical.ZIP_EPOCH), canonical.MAX_ZIP_TIME)
    if pack(entries, moment) != archive.data:
        yield found("not-canonical", name, "written again, its contents give other bytes")
