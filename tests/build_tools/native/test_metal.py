"""The whole chain on the miniature: lock, fetch, overlay, `swift build -c release`, manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.native import engine, exports, metal, toolchain
from build_tools.source import lock as locks
from build_tools.source import overlay
from build_tools.support import files, process
from build_tools.support.errors import BuildError, OverlayError, ToolchainError, UsageError
from build_tools.support.paths import ROOT
from build_tools.wheel import manifest as manifests
from build_tools.wheel import sbom
from tests.standins.servers import tiny_disk
from tests.standins.upstream.repositories import (
    HEADER,
    MINIATURE,
    SUBMODULE,
    miniature_tree,
    write_overlay,
)

if TYPE_CHECKING:
    from build_tools.native.cache import Built
    from build_tools.native.standins import Standins
    from tests.build_tools.conftest import Tools
    from tests.standins.upstream.repositories import Upstream

REQUEST = {
    "heads": 1, "head_dim": 64, "length_q": 16, "length_kv": 16, "scale": 0.125, "causal": False,
    "input": "fp16", "intermediate": "fp32",
}  # fmt: skip
UNREPAIRED = Path("/tmp/qwen_mfa_miniature.metal")  # the name that the miniature writes to


@pytest.fixture(scope="session")
def request_for(
    upstream: Upstream, apple: Standins, tmp_path_factory: pytest.TempPathFactory
) -> metal.Request:
    """Return what to build: the miniature, with the stand-ins in Apple's place."""
    folder = tmp_path_factory.mktemp("native")
    return metal.Request(
        lock=locks.load(upstream.write_lock(folder / "lock.toml")),
        repairs=overlay.load(write_overlay(folder / "overlay")),
        cache=folder / "cache",
        work=folder / "work",
        canonical=folder / "canonical",
        options=("-j", "2", *apple.options),
    )


@pytest.fixture(scope="session")
def built(request_for: metal.Request) -> Built:
    return metal.build(request_for)


def answer(library: Path, apple: Standins, cache: Path, **env: str) -> dict[str, Any]:
    """Encode one attention call in a process of its own, with a stand-in device."""
    request = {**REQUEST, "env": {"QWEN_MFA_CACHE_DIR": str(cache), **env}}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "build_tools.native.standins.encoding"),
            *(str(library), str(apple.library)),
        ],
        cwd=ROOT, input=json.dumps([request]), check=False, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "stderr": done.stderr}


# The result


def test_a_wheel_embeds_all_of_it(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The miniature's library is Linux's, and uses the Swift runtime: it has no tag of its own.
    monkeypatch.setattr(manifests, "platform_tag", lambda _native: "macosx_15_0_arm64")
    native = engine.describe(built)
    manifests.embed(native, tmp_path / "_native", version="1.2.3")
    embedded = {
        p.relative_to(tmp_path / "_native").as_posix(): files.sha256(p)
        for p in (tmp_path / "_native").rglob("*")
        if p.is_file()
    }
    text = (tmp_path / "_native" / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    del embedded["manifest.json"]
    assert embedded == built.manifest["files"]
    assert len([name for name in embedded if name.startswith("licenses/")]) == 2
    assert manifest["engine"] == "metal"
    assert manifest["library"]["sha256"] == embedded[manifest["library"]["file"]]
    assert str(built.folder) not in text
    document = json.loads(sbom.render(manifest, folder="qwen_mfa/_native"))
    named = json.dumps(document)
    for pin in built.manifest["pin"]:
        assert pin["commit"] in named


def test_the_engine_is_chosen_by_name() -> None:
    with pytest.raises(UsageError, match="not one of auto, metal, portable"):
        engine.build({engine.ENGINE: "cuda"})


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac can build it")
def test_insisting_on_metal_fails_where_it_cannot_be_built() -> None:
    with pytest.raises(ToolchainError, match="macOS"):
        engine.build({engine.ENGINE: "metal"})


def test_the_manifest_names_every_input_and_file(
    built: Built, request_for: metal.Request, upstream: Upstream
) -> None:
    manifest = built.manifest
    assert manifest["engine"] == "metal"
    assert manifest["pin"][0]["commit"] == upstream.first.commit
    assert manifest["pin"][0]["tree"] == upstream.first.tree
    assert manifest["pin"][1]["path"] == SUBMODULE
    assert manifest["overlay"] == overlay.hashes(request_for.repairs)
    assert "Swift version" in manifest["toolchain"]["swift"]
    assert manifest["flags"][:4] == ["-c", "release", "--product", "MFAFFI"]
    assert manifest["environment"]["SOURCE_DATE_EPOCH"] == "1767312000"
    present = {
        path.relative_to(built.folder).as_posix(): files.sha256(path)
        for path in built.folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert manifest["files"] == present
    assert any("FlashAttention" in name and name.endswith(".metal") for name in present)
    assert {name for name in present if name.startswith("licenses/")} == {
        "licenses/miniature-LICENSE",
        f"licenses/{SUBMODULE}-LICENSE",
    }
    # Nothing is left in the canonical folder.
    assert not request_for.canonical.exists()


def test_the_library_exports_what_the_header_declares(built: Built) -> None:
    functions = ["mfa_attention_encode_mtl", "mfa_create_context", "mfa_shader_origins"]
    assert built.manifest["abi"]["functions"] == functions
    assert set(functions) <= exports.exported(built.library)


def test_a_header_with_more_functions_is_an_error(built: Built, tmp_path: Path) -> None:
    header = tmp_path / "mfa_ffi.h"
    header.write_text("int mfa_create_context(void);\nvoid mfa_new(int);\n", encoding="utf-8")
    with pytest.raises(BuildError, match="does not export mfa_new"):
        exports.check(built.library, header)


# The repairs, run


def test_the_header_is_in_the_library(built: Built, apple: Standins, tmp_path: Path) -> None:
    found = answer(built.library, apple, tmp_path)
    assert (found["code"], found["dispatches"]) == (0, 1)
    (text,) = found["sources"]
    header = MINIATURE / "sub/Sources/FlashAttention/GEMM/GEMMBFloatTypes.h"
    assert header.read_text(encoding="utf-8") in text
    assert '#include "' not in text


def test_a_device_that_rejects_assembly_gets_ours(
    built: Built, apple: Standins, tmp_path: Path
) -> None:
    found = answer(built.library, apple, tmp_path, METAL_STANDIN_REJECT="asm")
    assert (found["code"], found["dispatches"]) == (0, 1)
    assert found["origins"][0]["variant"] == "plain"


def test_a_failed_compilation_is_an_error_code_and_not_the_end(
    built: Built, apple: Standins, tmp_path: Path
) -> None:
    found = answer(built.library, apple, tmp_path, METAL_STANDIN_REJECT="all")
    assert (found["code"], found["dispatches"]) == (5, 0)
    assert found["origins"][0]["origin"] == "failed"


def test_a_pack_beside_the_library_is_found(built: Built, apple: Standins, tmp_path: Path) -> None:
    """The format of docs/building.md, written here by hand, read by the library."""
    key = answer(built.library, apple, tmp_path)["origins"][0]["key"]
    library = tmp_path / built.library.name
    shutil.copyfile(built.library, library)
    shaders = tmp_path / "shaders"
    shaders.mkdir()
    content = b"standin metallib\nattention"
    (shaders / "one.metallib").write_bytes(content)
    entry = {
        "file": "one.metallib",
        "sha256": files.sha256(shaders / "one.metallib"),
        "variant": "upstream",
        "compiler": "test",
        "minimum_os": "1.0",
    }
    index = {"format": 1, "source": {"any": "thing"}, "libraries": {key: entry}}
    (shaders / "index.json").write_text(json.dumps(index), encoding="utf-8")
    found = answer(library, apple, tmp_path, METAL_STANDIN_REJECT="all")
    assert (found["code"], found["origins"][0]["origin"]) == (0, "pack")


def test_without_the_repairs_the_stand_in_shows_the_defects(
    built: Built, swift: str, apple: Standins, tmp_path: Path
) -> None:
    """That the tests above can fail: the unrepaired library fails each of them.

    G is tested here alone, with the unrepaired library after the repaired one: the file has a name
    that all test workers share.
    """
    UNREPAIRED.unlink(missing_ok=True)
    assert answer(built.library, apple, tmp_path)["code"] == 0
    assert not UNREPAIRED.exists()
    tree = miniature_tree(tmp_path / "tree")
    subprocess.run(
        [swift, "build", "-c", "release", "--package-path", str(tree), "-j", "2",
         "--product", "MFAFFI", *apple.options],
        check=True, capture_output=True,
    )  # fmt: skip
    library = tree / ".build" / "release" / "libMFAFFI.so"
    with pytest.raises(BuildError, match="mfa_shader_origins"):
        exports.check(library, tree / HEADER)
    # C, then B: a rejected source ends the process, because the encoder is open (and A and G).
    (tree / SUBMODULE / "Sources/FlashAttention/GEMM/GEMMBFloatTypes.h").unlink()
    found = answer(library, apple, tmp_path)
    assert found["signal"] != 0
    assert "released without endEncoding" in found["stderr"]
    assert '#include "GEMMBFloatTypes.h"' in UNREPAIRED.read_text(encoding="utf-8")
    UNREPAIRED.unlink()


# The same inputs, the same bytes; other inputs, another build


def test_the_second_run_takes_the_result(
    built: Built, request_for: metal.Request, capsys: pytest.CaptureFixture[str]
) -> None:
    before = built.library.stat().st_mtime_ns
    again = metal.build(request_for)
    assert again == built
    assert again.library.stat().st_mtime_ns == before
    assert "cached" in capsys.readouterr().err


def test_any_changed_input_is_another_key(request_for: metal.Request) -> None:
    tools = toolchain.check(request_for.lock.requires)

    def key(request: metal.Request, machine: toolchain.Toolchain = tools) -> str:
        return json.dumps(metal._inputs(request, machine), sort_keys=True)

    lock = request_for.lock
    other = replace(lock.upstream, tree="0" * 40)
    variants = {
        key(request_for),
        key(replace(request_for, options=("-v",))),
        key(replace(request_for, canonical=Path("/elsewhere"))),
        key(replace(request_for, lock=replace(lock, upstream=other))),
        key(replace(request_for, lock=replace(lock, date="2026-02-02"))),
        key(request_for, replace(tools, facts={**tools.facts, "swift": "Swift version 9"})),
    }
    assert len(variants) == 6


def test_a_damaged_result_is_built_anew_with_the_same_bytes(
    built: Built, request_for: metal.Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another umask, time zone and locale, and a cold cache: the same library."""
    expected = built.manifest
    built.library.write_bytes(b"damaged")
    # What a run that was killed leaves.
    stale = request_for.work / f".{built.folder.name}.abcdef"
    for folder in (stale / "stage", request_for.canonical / "source" / "Sources"):
        folder.mkdir(parents=True)
        (folder / "left.swift").write_text("not Swift", encoding="utf-8")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    old = os.umask(0o077)
    try:
        again = metal.build(request_for)
    finally:
        os.umask(old)
    assert again.manifest == expected
    assert files.sha256(again.library) == expected["library"]["sha256"]
    assert not stale.exists()


def test_the_command(
    built: Built, request_for: metal.Request, tools: Tools, upstream: Upstream, tmp_path: Path
) -> None:
    done = tools.run(
        "native", "--engine", "metal",
        "--lock", upstream.write_lock(tmp_path / "lock.toml"),
        "--overlay", request_for.repairs.folder,
        "--cache", request_for.cache,
        "--work", request_for.work,
        "--build-root", request_for.canonical,
        *[f"--swift-option={option}" for option in request_for.options],
    )  # fmt: skip
    assert done.stdout.strip() == str(built.library)


# Bad days


def with_overlay(request: metal.Request, folder: Path) -> metal.Request:
    """Return ``request`` with an overlay of its own, which a test may break."""
    shutil.copytree(request.repairs.folder, folder)
    return replace(request, repairs=overlay.load(folder))


def nothing_left(request: metal.Request, before: set[str]) -> None:
    names = {path.name for path in request.work.iterdir() if not path.name.endswith(".lock")}
    assert names == before
    assert not request.canonical.exists()


def test_a_compiler_error_shows_the_compilers_own_line(
    built: Built, request_for: metal.Request, tmp_path: Path
) -> None:
    broken = with_overlay(request_for, tmp_path / "overlay")
    path = broken.repairs.folder / "Sources" / "ShaderText.swift"
    path.write_text(path.read_text(encoding="utf-8") + 'let x: Int = ""\n', encoding="utf-8")
    before = {p.name for p in request_for.work.iterdir() if not p.name.endswith(".lock")}
    with pytest.raises(BuildError) as caught:
        metal.build(broken)
    assert "ShaderText.swift" in str(caught.value)
    assert "cannot convert value of type 'String' to specified type 'Int'" in str(caught.value)
    assert str(process.log_file()) in str(caught.value)
    nothing_left(request_for, before)


def test_a_full_disk(built: Built, request_for: metal.Request) -> None:
    small = request_for.work.parent / "small"
    with tiny_disk(small, "300k"):
        full = replace(request_for, canonical=small / "canonical", options=("-v",))
        before = {p.name for p in request_for.work.iterdir() if not p.name.endswith(".lock")}
        with pytest.raises(BuildError, match="No space left on device"):
            metal.build(full)
        nothing_left(full, before)


def test_an_overlay_that_does_not_fit_builds_nothing(
    built: Built, request_for: metal.Request, tmp_path: Path
) -> None:
    broken = with_overlay(request_for, tmp_path / "overlay")
    path = broken.repairs.folder / "overlay.toml"
    text = path.read_text(encoding="utf-8").replace("let file = URL", "let fire = URL")
    path.write_text(text, encoding="utf-8")
    before = {p.name for p in request_for.work.iterdir() if not p.name.endswith(".lock")}
    with pytest.raises(OverlayError, match="found 0 times"):
        metal.build(replace(broken, repairs=overlay.load(broken.repairs.folder)))
    nothing_left(request_for, before)


def fake_swift(folder: Path, text: str) -> str:
    folder.mkdir()
    program = folder / "swift"
    program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'Swift version 5.10 (swift-5.10-RELEASE)'", "is 5.10"),
        ("echo broken >&2; exit 1", "broken"),
        ("echo hello", "unknown version"),
    ],
)
def test_a_swift_that_will_not_do(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake_swift(tmp_path / "bin", script) + ":/bin:/usr/bin")
    with pytest.raises(ToolchainError) as caught:
        toolchain.check({"swift": "6.0"})
    assert "Swift 6.0 or newer" in str(caught.value)
    assert told in str(caught.value)
    assert "swift.org/install" in str(caught.value)


def test_no_swift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="`swift` is not on PATH") as caught:
        toolchain.check({"swift": "6.0"})
    assert "swift.org/install" in str(caught.value)


def test_the_real_pin_needs_a_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On Linux, with no Swift either: both are told at once, and nothing is fetched."""
    monkeypatch.setattr("build_tools.native.toolchain.platform.system", lambda: "Linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError) as caught:
        toolchain.check(locks.load().requires)
    assert "this is Linux, which has no Metal" in str(caught.value)
    assert "swift" in str(caught.value)


def test_an_old_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripts = {
        "swift": "echo 'Apple Swift version 5.9'",
        "xcodebuild": "echo 'Xcode 15.4'; echo 'Build version 15F31d'",
        "xcrun": "exit 72",
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr("build_tools.native.toolchain.platform.system", lambda: "Darwin")
    monkeypatch.setattr("build_tools.native.toolchain.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "build_tools.native.toolchain.platform.mac_ver", lambda: ("14.7", ("", "", ""), "")
    )
    with pytest.raises(ToolchainError) as caught:
        toolchain.check({"swift": "6.0", "macos": "15.0", "xcode": "16.0"})
    told = str(caught.value)
    for part in ("5.9", "14.7", "Xcode 15.4", "macOS SDK", "Apple silicon", "xcode-select"):
        assert part in told
    assert told.count("\n  - ") == 5


def test_somebody_elses_build_folder_is_refused(request_for: metal.Request, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.symlink_to(tmp_path)
    with pytest.raises(BuildError, match="belongs to somebody else"):
        metal._private_folder(theirs)
