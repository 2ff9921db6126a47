"""The overlay: fits or is refused whole; the real one is what it claims to be."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from build_tools.source import overlay
from build_tools.support import files
from build_tools.support.errors import OverlayError
from build_tools.support.paths import ROOT
from tests.standins.upstream.repositories import SUBMODULE, miniature_tree, write_overlay

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = f"{SUBMODULE}/Sources/FlashAttention/Attention/Attention.swift"
ANCHOR = (
    '    try? patched.write(toFile: "/tmp/qwen_mfa_miniature.metal", atomically: true, '
    "encoding: .utf8)\n"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return miniature_tree(tmp_path / "tree")


@pytest.fixture
def repairs(tmp_path: Path) -> Path:
    return write_overlay(tmp_path / "overlay")


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(repairs: Path, tree: Path) -> str:
    """Return the message; the tree must be as it was."""
    before = snapshot(tree)
    with pytest.raises(OverlayError) as caught:
        overlay.apply(overlay.load(repairs), tree)
    assert snapshot(tree) == before
    return str(caught.value)


def test_it_applies(repairs: Path, tree: Path) -> None:
    overlay.apply(overlay.load(repairs), tree)
    text = (tree / ATTENTION).read_text(encoding="utf-8")
    assert "MetalLibraryCompiler.makePipeline" in text
    assert ANCHOR not in text
    assert (tree / f"{SUBMODULE}/Sources/FlashAttention/QwenMFA/ShaderText.swift").is_file()


def test_a_file_that_changed_is_told_with_both_hashes(repairs: Path, tree: Path) -> None:
    expected = files.sha256(tree / ATTENTION)
    with (tree / ATTENTION).open("a", encoding="utf-8") as stream:
        stream.write("// changed\n")
    told = refused(repairs, tree)
    assert ATTENTION in told
    assert expected in told
    assert files.sha256(tree / ATTENTION) in told


@pytest.mark.parametrize(("edited", "found"), [("", 0), (ANCHOR * 2, 2)])
def test_an_anchor_that_is_gone_or_there_twice(
    edited: str, found: int, repairs: Path, tree: Path
) -> None:
    path = tree / ATTENTION
    path.write_text(path.read_text(encoding="utf-8").replace(ANCHOR, edited), encoding="utf-8")
    overlay.accept(overlay.load(repairs), tree)  # so that the hash is not what stops it
    told = refused(repairs, tree)
    assert f"was found {found} times, not 1" in told
    assert "B, C, G" in told


def test_a_file_that_is_gone(repairs: Path, tree: Path) -> None:
    (tree / ATTENTION).unlink()
    assert f"{ATTENTION}: the file is not there" in refused(repairs, tree)


def test_a_name_that_upstream_took(repairs: Path, tree: Path) -> None:
    taken = tree / f"{SUBMODULE}/Sources/FlashAttention/QwenMFA/ShaderText.swift"
    taken.parent.mkdir()
    taken.write_text("", encoding="utf-8")
    assert "upstream has a file of that name" in refused(repairs, tree)


def test_a_file_that_takes_the_place_of_an_upstream_one(repairs: Path, tree: Path) -> None:
    place = f"{SUBMODULE}/Sources/FlashAttention/GEMM/Quantized.metal"
    (repairs / "ours.metal").write_text("// ours\n", encoding="utf-8")
    with (repairs / "overlay.toml").open("a", encoding="utf-8") as stream:
        stream.write(f'\n[[copy]]\nfrom = "ours.metal"\nto = "{place}"\nreplaces = ""\n')
    assert f"{place}: its SHA-256 is {files.sha256(tree / place)}" in refused(repairs, tree)
    overlay.accept(overlay.load(repairs), tree)
    overlay.apply(overlay.load(repairs), tree)
    assert (tree / place).read_text(encoding="utf-8") == "// ours\n"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("schema = 1", "schema = 7", "schema is 7"),
        ("schema = 1", "schema = ", "malformed"),
        ("count = 1", "cuont = 1", "malformed"),
        ("count = 1", "count = 0", "below 1"),
        ('constant = "embeddedBFloatHeader"', "", "malformed"),
    ],
)
def test_malformed_data(before: str, after: str, told: str, repairs: Path) -> None:
    path = repairs / "overlay.toml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(OverlayError, match=told):
        overlay.load(repairs)


def test_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="cannot be read"):
        overlay.load(tmp_path)


def test_any_text_survives_as_a_swift_constant(swift: str, tmp_path: Path) -> None:
    texts = ['a "b" \\n \\(c) """ """# \\#(d)\n', "", "no newline", "ü\n\n  indented\n"]
    program = "".join(overlay.swift_constant(f"t{i}", text) for i, text in enumerate(texts))
    program += "".join(f'print(t{i}, terminator: "\\0")\n' for i in range(len(texts)))
    (tmp_path / "main.swift").write_text(program, encoding="utf-8")
    subprocess.run(
        [f"{swift}c", str(tmp_path / "main.swift"), "-o", str(tmp_path / "main")], check=True
    )
    printed = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    assert printed.decode() == "".join(f"{text}\0" for text in texts)


def test_the_real_overlay_repairs_what_it_claims_with_short_anchors() -> None:
    real = overlay.load(ROOT / "swift_pkg" / "overlay")
    assert {letter for edit in real.edits for letter in edit.defect.split(", ")} == set("ABCGHI")
    for edit in real.edits:
        for change in edit.changes:
            # Long enough to be found once, too short to be anybody's work.
            assert len(change.anchor.splitlines()) <= 4
            assert len(change.anchor) <= 160
    assert set(overlay.hashes(real)) > {"overlay.toml"}
