"""SBOMs of a wheel (PEP 770): readable, valid, and agreeing with the files beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from build_tools.audit.findings import Finding, found

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from build_tools.audit.contents import Content

DEEPEST = 200
CHECKED = {"SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}


def check_sboms(contents: Mapping[str, Content], folder: str) -> Iterator[Finding]:
    """Check every JSON document under ``folder``/sboms/."""
    inside = f"{folder}/sboms/"
    held = [each for each in contents.values() if each.name.startswith(inside)]
    if not held and any(each.native for each in contents.values()):
        yield found("sbom-missing", inside, "there are native libraries")
    for content in held:
        if content.name.endswith(".json"):
            yield from _check(content, contents)


def _check(content: Content, contents: Mapping[str, Content]) -> Iterator[Finding]:
    try:
        document = json.loads(content.text or b"")
    except (ValueError, RecursionError) as error:
        yield found("sbom-invalid", content.name, f"not JSON: {error}")
        return
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        return  # SPDX and others: nothing that we know to check
    problem = schema_problem(content.text or b"", document)
    if problem:
        yield found("sbom-invalid", content.name, problem)
        return
    for component in _components(document):
        yield from _compare(content.name, component, contents)


def schema_problem(text: bytes, document: Mapping[str, Any]) -> str:
    """Return how a CycloneDX document breaks the schema of its version, "" when it does not."""
    from cyclonedx.exception import MissingOptionalDependencyException  # noqa: PLC0415 - slow
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    try:
        version = SchemaVersion.from_version(str(document.get("specVersion")))
    except (ValueError, AttributeError, KeyError):
        return f"unknown specVersion {document.get('specVersion')!r}"
    try:
        error = JsonStrictValidator(version).validate_str(text.decode("utf-8"))
    except (ValueError, RecursionError, NotImplementedError) as failure:
        return f"cannot be validated: {failure}"
    except MissingOptionalDependencyException as failure:  # pragma: no cover - a broken install
        msg = "Validating an SBOM needs cyclonedx-python-lib[json-validation]; install it."
        raise RuntimeError(msg) from failure
    return "" if error is None else str(error.data)[:300]


def _components(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield components at every depth; the document has passed its schema."""
    pending: list[tuple[Any, int]] = [(document.get("components", []), 0)]
    while pending:
        components, depth = pending.pop()
        for component in components:
            yield component
            if depth < DEEPEST:
                pending.append((component.get("components", []), depth + 1))


def _compare(
    sbom: str, component: Mapping[str, Any], contents: Mapping[str, Content]
) -> Iterator[Finding]:
    name = str(component.get("name", ""))
    # What is out of scope was read by the build, and is not in the wheel.
    if component.get("type") != "file" or component.get("scope") == "excluded":
        return
    content = contents.get(name)
    if content is None:
        if "/" in name and not name.startswith("/"):
            yield found("sbom-disagrees", sbom, f"names {name}, which is not in the wheel")
        return
    for entry in component.get("hashes", []):
        algorithm = CHECKED.get(entry.get("alg"))
        if algorithm not in content.digests:
            continue
        if str(entry.get("content", "")).lower() != content.hexadecimal(algorithm):
            yield found("sbom-disagrees", sbom, f"{name} has another {entry.get('alg')}")
