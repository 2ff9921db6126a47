"""`typecheck` on the miniature, and the overlay's own Swift tests."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from build_tools.commands.typecheck import SOURCES, compare
from build_tools.native.kernels import PLAIN_EVENT
from build_tools.source import lock as locks
from build_tools.support import files
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT
from tests.standins.upstream.repositories import write_overlay

if TYPE_CHECKING:
    from pathlib import Path

    from build_tools.native.standins import Standins
    from tests.build_tools.conftest import Tools
    from tests.standins.upstream.repositories import Upstream


def test_the_overlay_passes_its_own_tests(swift: str, apple: Standins) -> None:
    done = subprocess.run(
        [
            swift, "test", "--package-path", str(ROOT / "swift_pkg" / "overlay"),
            "--scratch-path", str(ROOT / "build" / "overlay-test"), "-j", "2",
        ],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    counts = re.findall(r"Executed (\d+) tests, with 0 failures", done.stdout + done.stderr)
    assert max(map(int, counts)) >= 26
    # The compile policy prints nothing of its own between the tests' lines.
    lines = {line.split(" ")[0] for line in done.stdout.splitlines() if line.strip()}
    assert "no Metal library" not in done.stdout, lines


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work folder that the runs share, so that the stand-ins are built once."""
    return tmp_path_factory.mktemp("typecheck")


def test_the_miniature(
    apple: Standins, upstream: Upstream, tools: Tools, tmp_path: Path, work: Path
) -> None:
    arguments = (
        "typecheck",
        "--lock", upstream.write_lock(tmp_path / "lock.toml"),
        "--overlay", write_overlay(tmp_path / "overlay"),
        "--cache", tmp_path / "cache",
        "--work", work,
        "--sources", tmp_path / "sources.json",
    )  # fmt: skip
    told = tools.run(*arguments, "--write")
    assert "DOES NOT HOLD" not in told.stdout
    assert told.stdout.count("holds: ") == 12
    assert "32 distinct sources" in told.stdout
    record = json.loads((tmp_path / "sources.json").read_text(encoding="utf-8"))
    assert len(record["sources"]) == 32
    for variant in ("upstream", "plain"):
        assert sum(f" {variant} at " in text for text in record["sources"].values()) == 16


def test_keys_that_are_not_the_recorded_ones(tmp_path: Path) -> None:
    path = tmp_path / "sources.json"
    with pytest.raises(BuildError, match="record them: --write"):
        compare(path, {"sources": []})
    files.write_json(path, {"sources": ["a"]})
    compare(path, {"sources": ["a"]})
    with pytest.raises(BuildError, match="shader packs made for those would miss"):
        compare(path, {"sources": ["b"]})


def test_an_edit_that_does_not_fit_its_surroundings(
    apple: Standins, upstream: Upstream, tools: Tools, tmp_path: Path, work: Path
) -> None:
    folder = write_overlay(tmp_path / "overlay")
    data = folder / "overlay.toml"
    text = data.read_text(encoding="utf-8")
    data.write_text(
        text.replace("device: device, source: source", "gpu: device, source: source"),
        encoding="utf-8",
    )
    told = tools.run(
        "typecheck", "--lock", upstream.write_lock(tmp_path / "lock.toml"),
        "--overlay", folder, "--cache", tmp_path / "cache", "--work", work,
        "--no-kernels", status=1,
    )  # fmt: skip
    assert "incorrect argument label" in told.stderr


def test_no_source_at_hand(tools: Tools, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    told = tools.run(
        "typecheck", "--cache", tmp_path / "cache", "--offline", "--mirror", empty, status=1
    )
    assert "is not in the mirror" in told.stderr


def test_the_recorded_keys_belong_to_the_pin() -> None:
    record = json.loads((SOURCES).read_text(encoding="utf-8"))
    lock = locks.load()
    pinned = {repo.path or lock.name: repo.commit for repo in lock.repositories}
    assert record["commits"] == pinned
    # Whoever changes the plain variant records its keys anew (`typecheck --write`).
    assert record["plain_event"] == files.sha256(PLAIN_EVENT)
    assert len(record["sources"]) == 32
