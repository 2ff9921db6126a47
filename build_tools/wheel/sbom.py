"""The wheel's SBOM (PEP 770): what the embedded library is built from, as CycloneDX.

Everything in it comes from the wheel's manifest, so that the same inputs give the same bytes: the
serial number is derived from the contents, and the time is SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from build_tools.support.errors import BuildToolsError
from build_tools.wheel.canonical import source_date_epoch

NAME = "qwen-mfa.cdx.json"
LICENSE = "MIT"
# Our own namespace, so that serial numbers never meet anyone else's.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "qwen-mfa.sbom")
PROPERTY = "qwen-mfa"


class SbomError(BuildToolsError):
    """The SBOM cannot be written from this manifest."""


def render(manifest: Mapping[str, Any], *, folder: str) -> str:
    """Return the SBOM as JSON.

    Args:
        manifest: The wheel's manifest.
        folder: Folder of the library inside the wheel.

    Raises:
        SbomError: The manifest lacks a field, or the document breaks the schema.

    """
    try:
        bom = _bom(manifest, folder)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"the manifest does not say what an SBOM must: {error!r}"
        raise SbomError(msg) from error
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    # The library writes sets in the order of their hashes; sorted keys and lists are stable.
    text = json.dumps(_ordered(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
    problem = schema_problem(text)
    if problem:
        msg = f"the SBOM breaks its schema: {problem}"
        raise SbomError(msg)
    return text


def schema_problem(text: str) -> str:
    """Return how a CycloneDX document breaks the schema of its version, "" when it does not."""
    try:
        version = SchemaVersion.from_version(str(json.loads(text)["specVersion"]))
        error = JsonStrictValidator(version).validate_str(text)
    except (ValueError, LookupError, TypeError, RecursionError, NotImplementedError) as failure:
        return f"it cannot be validated: {failure!r}"
    return "" if error is None else str(error.data)


def _bom(manifest: Mapping[str, Any], folder: str) -> Bom:
    package = manifest["package"]
    product = Component(
        name=package["name"],
        version=package["version"],
        type=ComponentType.LIBRARY,
        bom_ref="package",
        licenses=[DisjunctiveLicense(id=LICENSE)],
        purl=PackageURL("pypi", None, package["name"], package["version"]),
    )
    library = Component(
        name=f"{folder}/{manifest['library']['file']}",
        type=ComponentType.FILE,
        bom_ref="library",
        hashes=[_sha256(manifest["library"]["sha256"])],
        properties=[Property(name=f"{PROPERTY}:engine", value=manifest["engine"])],
    )
    sources = [
        *(_repository(each) for each in manifest.get("pin", [])),
        *_files("overlay", manifest.get("overlay", {})),
        *_files("source", manifest.get("sources", {})),
    ]
    bom = Bom(
        components=[library, *sources],
        # Fixed now, replaced below by one that is derived from everything else.
        serial_number=uuid.UUID(int=0),
        metadata=BomMetaData(
            component=product,
            timestamp=datetime.fromtimestamp(source_date_epoch(), tz=timezone.utc),
            tools=ToolRepository(components=_tools(manifest)),
        ),
    )
    bom.register_dependency(product, [library])
    bom.register_dependency(library, sources)
    inputs = json.dumps(manifest, sort_keys=True)
    bom.serial_number = uuid.uuid5(NAMESPACE, inputs)
    return bom


def _repository(pin: Mapping[str, Any]) -> Component:
    """Name a pinned repository by commit and tree."""
    url, commit = pin["url"], pin["commit"]
    owner, name = url.removesuffix(".git").rstrip("/").split("/")[-2:]
    return Component(
        name=name,
        group=owner,
        version=commit,
        type=ComponentType.LIBRARY,
        bom_ref=f"git:{name}",
        licenses=[DisjunctiveLicense(id=LICENSE)],
        purl=PackageURL("github", owner, name, commit),
        external_references=[
            ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(url), comment=commit)
        ],
        properties=[
            Property(name=f"{PROPERTY}:git-commit", value=commit),
            Property(name=f"{PROPERTY}:git-tree", value=pin["tree"]),
            Property(name=f"{PROPERTY}:path", value=pin.get("path") or "."),
        ],
    )


def _files(kind: str, hashes: Mapping[str, str]) -> list[Component]:
    """Name our own source files; they are inputs, so their scope says they are not in the wheel."""
    return [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"{kind}:{name}",
            scope=ComponentScope.EXCLUDED,
            hashes=[_sha256(digest)],
        )
        for name, digest in sorted(hashes.items())
    ]


def _tools(manifest: Mapping[str, Any]) -> list[Component]:
    facts = manifest.get("toolchain") or {"compiler": manifest.get("compiler", "unknown")}
    return [
        Component(name=str(name), version=str(value), type=ComponentType.APPLICATION)
        for name, value in sorted(facts.items())
    ]


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=lambda each: json.dumps(each, sort_keys=True))
    return value
