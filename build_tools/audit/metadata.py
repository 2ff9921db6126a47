"""WHEEL, METADATA and entry points, against the file name and the contents."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import compat32

from packaging.metadata import Metadata

from build_tools.audit.findings import Finding, found
from build_tools.wheel import manifest
from build_tools.wheel.archives import Archive

MAX_METADATA = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the file name says; ``platform`` is None for a source distribution."""

    version: str
    platform: str | None

    @property
    def stem(self) -> str:
        """How the names of its folders begin."""
        return f"{manifest.PACKAGE}-{self.version}"

    @property
    def info(self) -> str:
        """The folder of a wheel's metadata."""
        return f"{self.stem}.dist-info"


def check_wheel_file(archive: Archive, identity: Identity) -> Iterator[Finding]:
    """Check WHEEL, whose fields follow from the file name, and the entry points."""
    name = f"{identity.info}/WHEEL"
    fields = BytesParser(policy=compat32).parsebytes(
        archive.text(name)[:MAX_METADATA].encode("utf-8", "replace"), headersonly=True
    )
    wanted = {
        "Wheel-Version": "1.0",
        "Root-Is-Purelib": "true" if identity.platform == "any" else "false",
        "Tag": f"py3-none-{identity.platform}",
    }
    for field, value in wanted.items():
        held = [str(each) for each in fields.get_all(field, [])]
        if held != [value]:
            yield found("wheel-file", name, f"{field} is {held}, it has to be {value}")
    yield from _entry_points(archive, f"{identity.info}/entry_points.txt")


def _entry_points(archive: Archive, name: str) -> Iterator[Finding]:
    parser = configparser.RawConfigParser(delimiters=("=",), interpolation=None)
    try:
        parser.read_string(archive.text(name)[:MAX_METADATA])
        values = [value for section in parser.sections() for _, value in parser.items(section)]
    except (configparser.Error, ValueError) as error:
        yield found("entry-point", name, str(error))
        return
    for value in values:
        path = value.partition(":")[0].strip().replace(".", "/")
        if not {f"{path}.py", f"{path}/__init__.py"} & archive.entries.keys():
            yield found("entry-point", name, f"{value}: there is no such module")


def check_metadata(archive: Archive, identity: Identity) -> Iterator[Finding]:
    """Check METADATA, PKG-INFO in a source distribution."""
    wheel = identity.platform is not None
    name = f"{identity.info}/METADATA" if wheel else f"{identity.stem}/PKG-INFO"
    text = archive.text(name).encode("utf-8", "replace")
    try:
        metadata = Metadata.from_email(text[:MAX_METADATA])
    except Exception as error:  # noqa: BLE001 - packaging's own group, which no name reaches before 3.11
        problems = getattr(error, "exceptions", [error])
        yield from (found("metadata", name, str(problem)) for problem in problems)
        return
    if (metadata.name, str(metadata.version)) != ("qwen-mfa", identity.version):
        yield found("metadata", name, f"it is of {metadata.name} {metadata.version}")
    folder = f"{identity.info}/licenses" if wheel else identity.stem
    for file in metadata.license_files or ["LICENSE"]:
        if f"{folder}/{file}" not in archive.entries:
            yield found("metadata", name, f"it names {file}, which is not in {folder}/")
