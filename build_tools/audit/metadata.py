"""The .dist-info folder: WHEEL, METADATA, licences and entry points, against the file name."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import compat32
from typing import TYPE_CHECKING

from packaging.metadata import InvalidMetadata, Metadata
from packaging.tags import parse_tag
from packaging.utils import (
    InvalidName,
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from build_tools.audit.findings import Finding, found

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message

    from packaging.tags import Tag

    from build_tools.audit.contents import Content

LARGEST_METADATA = 8 * 1024 * 1024
LICENSE = re.compile(r"(?i)(^|/)(licen[cs]e|copying|notice|authors|copyright)[^/]*$")
OBJECT = re.compile(r"([A-Za-z_][\w.]*)\s*(?::\s*([A-Za-z_][\w.]*))?\s*(\[.*\])?")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the file name says; empty when it is no wheel's name."""

    name: str = ""
    version: Version | None = None
    tags: frozenset[Tag] = frozenset()

    @property
    def platforms(self) -> frozenset[str]:
        """The platform part of every tag."""
        return frozenset(tag.platform for tag in self.tags)


def identify(filename: str) -> tuple[Identity, list[Finding]]:
    """Take a wheel's file name apart."""
    try:
        name, version, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidName, InvalidVersion, ValueError) as error:
        return Identity(), [found("filename-invalid", filename, str(error))]
    return Identity(name=name, version=version, tags=tags), []


def dist_info(names: list[str], identity: Identity, wheel: str) -> tuple[str, list[Finding]]:
    """Return the .dist-info folder to look at, "" when there is none."""
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    folders = sorted(top for top in tops if top.endswith(".dist-info"))
    if len(folders) != 1:
        what = f"found {len(folders)}: {', '.join(folders[:5])}" if folders else "found none"
        return (folders[0] if folders else ""), [found("dist-info-count", wheel, what)]
    folder = folders[0]
    name, _, version = folder.removesuffix(".dist-info").partition("-")
    if identity.name and not _same(name, version, identity):
        return folder, [found("dist-info-name", folder, f"{wheel} says {_said(identity)}")]
    return folder, []


def _same(name: str, version: str, identity: Identity) -> bool:
    try:
        return canonicalize_name(name) == identity.name and Version(version) == identity.version
    except InvalidVersion:
        return False


def _said(identity: Identity) -> str:
    return f"{identity.name} {identity.version}"


def check_wheel_file(
    contents: Mapping[str, Content], folder: str, identity: Identity
) -> Iterator[Finding]:
    """Check WHEEL: its fields, its tags against the file name, purelib against the contents."""
    name = f"{folder}/WHEEL"
    content = contents.get(name)
    if content is None or content.text is None:
        yield found("wheel-file-missing", name, "there is no such file, or it cannot be read")
        return
    fields = _headers(content.text)
    if fields is None:
        yield found("wheel-file-invalid", name, "it is no list of fields")
        return
    for field in ("Wheel-Version", "Root-Is-Purelib"):
        count = len(fields.get_all(field, []))
        if count != 1:
            yield found("wheel-file-invalid", name, f"{field} occurs {count} times")
    version = str(fields.get("Wheel-Version", "1.0"))
    if not re.fullmatch(r"1\.\d+", version):
        yield found("wheel-file-invalid", name, f"Wheel-Version is {version}")
    yield from _check_tags(name, fields, identity)
    purelib = str(fields.get("Root-Is-Purelib", "")).strip().lower()
    if purelib not in {"true", "false", ""}:
        yield found("wheel-file-invalid", name, f"Root-Is-Purelib is {purelib}")
    native = [each.name for each in contents.values() if each.native and _in_root(each.name)]
    # A wheel for any platform is judged by its tag, once.
    if purelib == "true" and native and "any" not in identity.platforms:
        yield found("purelib-with-binaries", name, f"native files, the first is {native[0]}")


def _in_root(name: str) -> bool:
    return ".data/" not in name


def _check_tags(name: str, fields: Message, identity: Identity) -> Iterator[Finding]:
    written = [str(tag) for tag in fields.get_all("Tag", [])]
    if not written:
        yield found("wheel-file-invalid", name, "there is no Tag")
        return
    if len(written) > 1000:
        yield found("wheel-file-invalid", name, f"there are {len(written)} tags")
        return
    try:
        tags = frozenset(tag for text in written for tag in parse_tag(text))
    except ValueError as error:
        yield found("wheel-file-invalid", name, f"a Tag cannot be read: {error}")
        return
    if identity.tags and tags != identity.tags:
        here = ", ".join(sorted(map(str, tags - identity.tags))[:4]) or "nothing more"
        there = ", ".join(sorted(map(str, identity.tags - tags))[:4]) or "nothing more"
        yield found("wheel-tag-mismatch", name, f"WHEEL has {here}; the file name has {there}")


def _headers(text: bytes) -> Message | None:
    if len(text) > LARGEST_METADATA:
        return None
    try:
        return BytesParser(policy=compat32).parsebytes(text, headersonly=True)
    except (ValueError, LookupError, RecursionError):
        return None


def check_metadata(
    contents: Mapping[str, Content], folder: str, identity: Identity
) -> Iterator[Finding]:
    """Check METADATA against its specification, the file name and the licences in the wheel."""
    name = f"{folder}/METADATA"
    content = contents.get(name)
    if content is None or content.text is None or len(content.text) > LARGEST_METADATA:
        yield found("metadata-missing", name, "there is no such file, or it cannot be read")
        return
    try:
        metadata = Metadata.from_email(content.text)
    except (ValueError, LookupError, RecursionError) as error:
        yield found("metadata-invalid", name, str(error))
        return
    except Exception as error:  # packaging.errors.ExceptionGroup is an Exception before 3.11
        problems = getattr(error, "exceptions", None)
        if problems is None:
            raise
        for problem in problems:
            field = problem.field if isinstance(problem, InvalidMetadata) else "METADATA"
            early = "introduced in metadata version" in str(problem)
            yield found(
                "metadata-early" if early else "metadata-invalid", name, f"{field}: {problem}"
            )
        return
    if identity.name and (
        canonicalize_name(metadata.name) != identity.name or metadata.version != identity.version
    ):
        what = f"says {metadata.name} {metadata.version}, the file name {_said(identity)}"
        yield found("metadata-mismatch", name, what)
    yield from _check_licences(contents, folder, metadata.license_files or [])


def _check_licences(
    contents: Mapping[str, Content], folder: str, files: list[str]
) -> Iterator[Finding]:
    for file in files:
        # Before metadata 2.4, files lay beside METADATA.
        places = {f"{folder}/licenses/{file}", f"{folder}/license_files/{file}", f"{folder}/{file}"}
        if not places & contents.keys() and f"{folder}/{file.rsplit('/', 1)[-1]}" not in contents:
            yield found("license-absent", f"{folder}/licenses/{file}", "named by License-File")
    held = [name for name in contents if name.startswith(f"{folder}/") and LICENSE.search(name)]
    if not files and not held:
        yield found("license-missing", folder, "no licence text")


def requires_dist(contents: Mapping[str, Content], folder: str) -> bool:
    """Say whether METADATA names other distributions that must be installed."""
    content = contents.get(f"{folder}/METADATA")
    fields = _headers(content.text) if content is not None and content.text else None
    return fields is not None and bool(fields.get_all("Requires-Dist", []))


def check_entry_points(
    contents: Mapping[str, Content], folder: str, read_source: Sources
) -> Iterator[Finding]:
    """Check that every entry point names something that the wheel holds, as far as text tells."""
    name = f"{folder}/entry_points.txt"
    content = contents.get(name)
    if content is None or content.text is None:
        return
    parser = configparser.RawConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(content.text.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError, ValueError) as error:
        yield found("entry-point-invalid", name, str(error).replace("\n", " "))
        return
    for section in parser.sections():
        for key, value in parser.items(section):
            match = OBJECT.fullmatch(value.strip())
            if match is None:
                yield found("entry-point-invalid", name, f"{section}: {key} = {value}")
                continue
            problem = read_source.problem(match[1], match[2])
            if problem:
                yield found("entry-point-missing", name, f"{key} = {value}: {problem}")


class Sources:
    """Finds modules in a wheel by name, and looks for words in them."""

    def __init__(self, contents: Mapping[str, Content], texts: Mapping[str, bytes]) -> None:
        self._names = {_installed(name): name for name in contents}
        self._texts = texts

    def problem(self, module: str, attribute: str | None) -> str:
        """Return what is wrong with ``module:attribute``, "" when nothing is."""
        path = module.replace(".", "/")
        top = path.split("/", 1)[0]
        if not any(name.split("/", 1)[0].split(".", 1)[0] == top for name in self._names):
            return ""  # another distribution's module
        file = next(
            (each for each in (f"{path}.py", f"{path}/__init__.py") if each in self._names), None
        )
        if file is None:
            start = path + "."
            exists = any(
                (name.startswith(start) and name.endswith((".so", ".pyd")))
                or name.startswith(path + "/")  # a namespace package
                for name in self._names
            )
            return "" if exists else f"there is no module {module}"
        text = self._texts.get(self._names[file])
        word = (attribute or "").split(".", 1)[0].encode()
        if text is None or not word or b"__getattr__" in text or b"import *" in text:
            return ""
        found_word = re.search(rb"(?<!\w)" + re.escape(word) + rb"(?!\w)", text)
        return "" if found_word else f"{file} never mentions {word.decode()}"


def _installed(name: str) -> str:
    """Return where a file lands, relative to site-packages."""
    return re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)


def entry_point_modules(contents: Mapping[str, Content], folder: str) -> set[str]:
    """Return the files that entry points may refer to, so that their text is kept."""
    content = contents.get(f"{folder}/entry_points.txt")
    if content is None or content.text is None:
        return set()
    text = content.text.decode("utf-8", "replace")
    words = {word.replace(".", "/") for word in re.findall(r"=\s*([A-Za-z_][\w.]*)", text)}
    return {
        name
        for name in contents
        if name.endswith(".py")
        and _installed(name).removesuffix(".py").removesuffix("/__init__") in words
    }
