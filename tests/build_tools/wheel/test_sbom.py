"""The SBOM: names what the library is made of, by the CycloneDX schema, the same every time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.model.bom import Bom

from build_tools.wheel import sbom

LIBRARY = "qwen_mfa/_native/libMFAFFI.dylib"
METAL: dict[str, Any] = {
    "package": {"name": "qwen-mfa", "version": "1.0"},
    "engine": "metal",
    "library": {"file": "libMFAFFI.dylib", "sha256": "a" * 64},
    "pin": [
        {
            "path": "",
            "url": "https://github.com/bghira/universal-metal-flash-attention",
            "commit": "e" * 40,
            "tree": "f" * 40,
        },
        {
            "path": "metal-flash-attention",
            "url": "https://github.com/bghira/metal-flash-attention-plus.git",
            "commit": "c" * 40,
            "tree": "d" * 40,
        },
    ],
    "overlay": {"swift_pkg/overlay/Compile.swift": "b" * 64},
    "toolchain": {"swift": "6.3.1", "xcode": "16.4"},
}
PORTABLE: dict[str, Any] = {
    "package": {"name": "qwen-mfa", "version": "1.0"},
    "engine": "portable",
    "library": {"file": "libMFAFFI.so", "sha256": "a" * 64},
    "sources": {"swift_pkg/Sources/MFAFFI/abi/handles.c": "b" * 64},
    "compiler": "gcc 12.2.0",
}


def rendered(manifest: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sbom.render(manifest, folder="qwen_mfa/_native"))
    return document


@pytest.mark.parametrize("manifest", [METAL, PORTABLE], ids=["metal", "portable"])
def test_valid_and_read_back(manifest: dict[str, Any]) -> None:
    document = rendered(manifest)
    assert sbom.schema_problem(json.dumps(document)) == ""
    bom = Bom.from_json(document)  # type: ignore[attr-defined]
    assert bom.metadata.component.name == "qwen-mfa"
    assert bom.metadata.component.version == "1.0"
    edges = {edge["ref"]: set(edge.get("dependsOn", [])) for edge in document["dependencies"]}
    inputs = {each["bom-ref"] for each in document["components"]} - {"library"}
    assert edges["package"] == {"library"}
    assert edges["library"] == inputs


def test_pins_by_commit_and_tree() -> None:
    components = {each["bom-ref"]: each for each in rendered(METAL)["components"]}
    for pin in METAL["pin"]:
        name = pin["url"].rsplit("/", 1)[-1].removesuffix(".git")
        component = components[f"git:{name}"]
        properties = {each["name"]: each["value"] for each in component["properties"]}
        assert component["purl"] == f"pkg:github/bghira/{name}@{pin['commit']}"
        assert properties["qwen-mfa:git-commit"] == pin["commit"]
        assert properties["qwen-mfa:git-tree"] == pin["tree"]
    overlay = components["overlay:swift_pkg/overlay/Compile.swift"]
    assert overlay["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    assert components["library"]["name"] == LIBRARY


def test_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    first = sbom.render(METAL, folder="x")
    reordered = dict(reversed(METAL.items()))
    assert sbom.render(reordered, folder="x") == first
    other = {**METAL, "engine": "other"}
    assert rendered(other)["serialNumber"] != rendered(METAL)["serialNumber"]
    assert rendered(METAL)["metadata"]["timestamp"] == "1980-01-01T00:00:00+00:00"


@pytest.mark.parametrize("field", ["package", "library", "engine"])
def test_a_manifest_that_lacks_something(field: str) -> None:
    manifest = {name: value for name, value in METAL.items() if name != field}
    with pytest.raises(sbom.SbomError, match="does not say what an SBOM must"):
        sbom.render(manifest, folder="x")
