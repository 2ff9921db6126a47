"""What an audit says: findings, each with a code, the file, the fact and how to mend it.

``docs/auditing.md`` lists the codes; a test holds one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_tools.support.console import printable
from build_tools.support.errors import BuildToolsError

MAX_TEXT = 400  # of what a file says, quoted in one finding
# code -> (meaning, mend)
CODES: dict[str, tuple[str, str]] = {
    "not-canonical": (
        "The archive's bytes are not those that its contents have in canonical form.",
        "Build it by `make wheel`, or pass it through build_tools.wheel.canonical.",
    ),
    "record": (
        "RECORD is not the list of the files in the wheel with their SHA-256 and sizes.",
        "Build the wheel again; if it was downloaded, discard it: it was changed.",
    ),
    "file-missing": (
        "A file that every such archive has is not there.",
        "Pack it: see pyproject.toml [tool.setuptools.package-data] and MANIFEST.in.",
    ),
    "file-unexpected": (
        "A file is there that no such archive has.",
        "Leave it out; or, if it belongs there, name it in build_tools/audit/contents.py.",
    ),
    "metadata": (
        "METADATA (or PKG-INFO) breaks its specification, or is of another version.",
        "Correct pyproject.toml; do not rename archives.",
    ),
    "wheel-file": (
        "WHEEL does not say what the file name and the contents say.",
        "Build the wheel again; do not rename wheels.",
    ),
    "entry-point": (
        "An entry point names a module that the wheel does not hold.",
        "Correct [project.scripts] in pyproject.toml.",
    ),
    "manifest": (
        "The manifest does not agree with the files beside it, or with the wheel's name.",
        "Build the wheel again.",
    ),
    "sbom": (
        "The SBOM breaks its schema, or does not agree with the files and the manifest.",
        "Build the wheel again: the SBOM is made of its manifest.",
    ),
    "shader-pack": (
        "A shader pack's index is malformed, or does not fit the files beside it.",
        "Make the pack again: .venv/bin/python -m build_tools shaders pack.",
    ),
    "build-path": (
        "Paths of the machine that built the wheel stand in the file.",
        "Map prefixes (-ffile-prefix-map), strip debug information, correct the metadata.",
    ),
    "library-malformed": (
        "The library is cut, universal, contradicts itself, or is not for the tag's platform.",
        "Build the library again, for the tag's platform.",
    ),
    "architecture": (
        "The library is not for the processor of the tag.",
        "Build for the tag's processor.",
    ),
    "minimum-os": (
        "The library needs a newer macOS or glibc than the tag admits.",
        "Build with the tag's MACOSX_DEPLOYMENT_TARGET, or in an older image; or raise the tag.",
    ),
    "dependency": (
        "The library depends on something that is not on the system's list of the tag.",
        "Link it statically.",
    ),
    "rpath": (
        "The library has a run path: another user's file may be found there.",
        "Remove it: .venv/bin/python -m build_tools relocate.",
    ),
    "install-name": (
        "The library's own name is not the one that it has in the wheel.",
        "Set it: .venv/bin/python -m build_tools relocate; on Linux, -soname.",
    ),
    "hardening": (
        "Memory is writable and executable, or relocated data stays writable.",
        "Link with -z noexecstack -z relro -z now, and compile everything with -fPIC.",
    ),
    "debug-information": (
        "The library carries debugging information.",
        "Strip it: objcopy --strip-debug.",
    ),
    "signature": (
        "The code signature is missing or does not fit the file; macOS kills what loads it.",
        "Sign again after the last change: .venv/bin/python -m build_tools relocate.",
    ),
    "abi-missing": (
        "The library does not export a function that the package declares.",
        "Export it, or correct qwen_mfa/native/abi.cdef.",
    ),
    "abi-extra": (
        "The library exports names that are not of the ABI.",
        "Limit exports: -fvisibility=hidden and a version script.",
    ),
}


class AuditError(BuildToolsError):
    """A wheel breaks its contract; the message lists the findings."""


class ForeignError(BuildToolsError):
    """The file is not of this project; the message names the tool that checks such files."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong in one place; fit to be printed, whatever the archive holds."""

    code: str
    file: str  # name inside the archive, or the archive's own name
    what: str
    mend: str


def found(code: str, file: str, what: str) -> Finding:
    """Return a finding of that code."""
    place, fact = (
        printable(text[:MAX_TEXT]) + "…" * (len(text) > MAX_TEXT) for text in (file, what)
    )
    return Finding(code=code, file=place, what=fact, mend=CODES[code][1])
