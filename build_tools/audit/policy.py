"""Policies: which findings count, for which files, and what a wheel must hold beyond the rules.

A policy is a TOML file::

    [codes]                       # a new severity, or "ignore"
    build-path = "error"

    [[allow]]                     # exceptions, each with its reason
    code = "build-path"
    file = "package/tests/*"
    reason = "test data"

    [files]
    required = ["package/py.typed"]
    required-with-binaries = ["*.dist-info/sboms/*.json"]

    [abi]
    library = "package/libexample.*"
    declarations = "package/api.cdef"   # C declarations, a file of the wheel
    optional = ["example_new_*"]        # declared, but not every library exports them
    allowed = ["example_*"]             # exported, but not declared
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from build_tools.audit.codes import CODES
from build_tools.audit.findings import Finding, Severity, found
from build_tools.support.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from build_tools.audit.contents import Content

SEVERITIES = {each.value for each in Severity}
FUNCTION = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
NOT_CODE = re.compile(r"/\*.*?\*/|//[^\n]*|\{[^{}]*\}|^\s*#[^\n]*", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """One exception: ``code`` does not count in files that match ``file``."""

    code: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Abi:
    """Exports that a library must and may have; names and globs as in the module's text."""

    library: str
    declarations: str
    optional: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What to make of the findings; the default changes nothing."""

    codes: Mapping[str, str] = field(default_factory=dict)
    allow: tuple[Allowed, ...] = ()
    required: tuple[str, ...] = ()
    required_with_binaries: tuple[str, ...] = ()
    abi: Abi | None = None

    @property
    def texts(self) -> frozenset[str]:
        """Names of the files whose text this policy looks into."""
        return frozenset({self.abi.declarations} if self.abi is not None else ())

    def apply(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Yield the findings that remain, with the severities of this policy."""
        for finding in findings:
            severity = self.codes.get(finding.code, finding.severity.value)
            excepted = any(
                each.code == finding.code and fnmatchcase(finding.file, each.file)
                for each in self.allow
            )
            if severity != "ignore" and not excepted:
                yield replace(finding, severity=Severity(severity))

    def demands(self, contents: Mapping[str, Content], wheel: str) -> Iterator[Finding]:
        """Yield what the wheel lacks that this policy demands."""
        native = any(each.native for each in contents.values())
        for pattern in (*self.required, *(self.required_with_binaries if native else ())):
            if not any(fnmatchcase(name, pattern) for name in contents):
                yield found("file-required", wheel, f"nothing matches {pattern}")
        if self.abi is not None and native:
            yield from _check_abi(self.abi, contents, wheel)


def _check_abi(abi: Abi, contents: Mapping[str, Content], wheel: str) -> Iterator[Finding]:
    declarations = contents.get(abi.declarations)
    if declarations is None or declarations.text is None:
        yield found("file-required", wheel, f"there is no {abi.declarations}")
        return
    declared = declared_functions(declarations.text.decode("utf-8", "replace"))
    libraries = [each for each in contents.values() if fnmatchcase(each.name, abi.library)]
    if not any(each.native for each in libraries):
        yield found("file-required", wheel, f"no library matches {abi.library}")
    for library in libraries:
        tables = [part.facts.exports for part in library.macho]
        if library.elf is not None:
            tables.append(library.elf.exports)
        for exports in tables:
            missing = sorted(
                name for name in declared - exports if not _matches(name, abi.optional)
            )
            if missing:
                yield found("abi-missing", library.name, f"does not export {_some(missing)}")
            extra = sorted(name for name in exports - declared if not _matches(name, abi.allowed))
            if extra:
                yield found("abi-extra", library.name, f"also exports {_some(extra)}")


def declared_functions(text: str) -> set[str]:
    """Return the names of the functions that C declarations declare."""
    while (shorter := NOT_CODE.sub(" ", text)) != text:
        text = shorter
    return {
        match[1]
        for statement in text.split(";")
        if not statement.lstrip().startswith("typedef") and (match := FUNCTION.search(statement))
    }


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def strict() -> Policy:
    """Return the policy that every wheel of this project must pass."""
    resource = files("build_tools.audit") / "strict.toml"
    return parse(resource.read_text(encoding="utf-8"), "strict.toml")


def load(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        UsageError: It cannot be read, or says something unknown.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"The policy {path} cannot be read: {error}"
        raise UsageError(msg) from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Policy:
    """Turn a policy's text into a `Policy`; ``source`` names it in errors."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"The policy {source} is not TOML: {error}"
        raise UsageError(msg) from error
    _only(data, {"codes", "allow", "files", "abi"}, source)
    codes = _table(data, "codes", source)
    for code, severity in codes.items():
        _known(code, source)
        if severity not in SEVERITIES | {"ignore"}:
            known = ", ".join([*sorted(SEVERITIES), "ignore"])
            msg = f"{source}: {code} = {severity!r} is none of {known}"
            raise UsageError(msg)
    wanted = _table(data, "files", source)
    _only(wanted, {"required", "required-with-binaries"}, f"{source} [files]")
    return Policy(
        codes=codes,
        allow=tuple(_allowed(each, source) for each in _list(data, "allow", source)),
        required=_names(wanted, "required", source),
        required_with_binaries=_names(wanted, "required-with-binaries", source),
        abi=_abi(_table(data, "abi", source), source) if "abi" in data else None,
    )


def _allowed(entry: Any, source: str) -> Allowed:
    fields = entry if isinstance(entry, dict) else {}
    if fields.keys() != {"code", "file", "reason"} or not all(
        isinstance(value, str) and value for value in fields.values()
    ):
        msg = f"{source}: each [[allow]] needs code, file and reason, all of them text"
        raise UsageError(msg)
    _known(fields["code"], source)
    return Allowed(**fields)


def _abi(table: Mapping[str, Any], source: str) -> Abi:
    _only(table, {"library", "declarations", "optional", "allowed"}, f"{source} [abi]")
    library, declarations = table.get("library"), table.get("declarations")
    if not isinstance(library, str) or not isinstance(declarations, str):
        msg = f"{source}: [abi] needs library (a glob) and declarations (a file of the wheel)"
        raise UsageError(msg)
    return Abi(
        library=library,
        declarations=declarations,
        optional=_names(table, "optional", source),
        allowed=_names(table, "allowed", source),
    )


def _known(code: str, source: str) -> None:
    if code not in CODES:
        msg = f"{source}: there is no code {code!r}; docs/auditing.md lists them"
        raise UsageError(msg)


def _only(table: Mapping[str, Any], known: set[str], source: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        msg = f"{source}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}"
        raise UsageError(msg)


def _table(data: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        msg = f"{source}: {key} is not a table"
        raise UsageError(msg)
    return value


def _list(data: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        msg = f"{source}: {key} is not a list"
        raise UsageError(msg)
    return value


def _names(data: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    values = _list(data, key, source)
    if not all(isinstance(each, str) for each in values):
        msg = f"{source}: {key} is not a list of text"
        raise UsageError(msg)
    return tuple(values)
