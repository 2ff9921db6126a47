"""`pin`: what is new upstream, and a lock that is written only when the repairs still apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from build_tools.source import lock as locks
from build_tools.source import overlay
from tests.standins.upstream.repositories import SUBMODULE, Upstream, write_overlay

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build_tools.conftest import Tools
    from tests.standins.servers import GitServer

ATTENTION = "Sources/FlashAttention/Attention/Attention.swift"
ANCHOR = "device.makeLibrary(source: source, options: options)"


@pytest.fixture
def moving(server: GitServer, tmp_path: Path) -> Upstream:
    """A miniature of this test's own, to which it may commit."""
    upstream = Upstream(server, tmp_path / "moving", prefix=tmp_path.name)
    upstream.write_lock(tmp_path / "lock.toml")
    write_overlay(tmp_path / "overlay")
    return upstream


def pin(tools: Tools, *arguments: object, status: int = 0) -> str:
    folder = tools.folder
    done = tools.run(
        "pin", *arguments, "--lock", folder / "lock.toml", "--overlay", folder / "overlay",
        "--cache", folder / "cache", status=status,
    )  # fmt: skip
    return done.stdout + done.stderr


def change(upstream: Upstream, before: str, after: str) -> str:
    path = upstream.sub / ATTENTION
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    return upstream.commit("change attention").commit


def test_check(moving: Upstream, tools: Tools) -> None:
    assert "is our pin" in pin(tools, "--check")
    new = moving.commit("something new")
    told = pin(tools, "--check", status=3)
    assert new.commit in told
    assert moving.first.commit in told


def test_a_hostile_subject_does_not_reach_the_terminal(moving: Upstream, tools: Tools) -> None:
    moving.commit("red\x1b[31m, a title\x1b]0;x\x07, another way round\u202e, a line\x85forged: 1")
    told = pin(tools, "main", "--dry-run")
    assert "red\\x1b[31m, a title\\x1b]0;x\\x07" in told
    assert "round\\u202e, a line\\x85forged: 1" in told
    assert not set(told) & {"\x1b", "\x07", "\u202e", "\x85"}


def test_a_new_pin_is_shown_and_written(moving: Upstream, tools: Tools) -> None:
    header = moving.super / "Sources/MFAFFI/include/mfa_ffi.h"
    header.write_text(
        header.read_text(encoding="utf-8").replace("mfa_create_context", "mfa_make_context"),
        encoding="utf-8",
    )
    new = moving.commit("rename a function")
    lock_file = tools.folder / "lock.toml"
    before = lock_file.read_text(encoding="utf-8")
    told = pin(tools, "main", "--dry-run")
    assert lock_file.read_text(encoding="utf-8") == before
    assert "rename a function" in told
    assert "mfa_make_context" in told
    assert "mfa_create_context" in told
    assert "--why TEXT is needed" in pin(tools, "main", status=1)
    pin(tools, "main", "--why", "a better name")
    lock = locks.load(lock_file)
    assert (lock.upstream.commit, lock.upstream.tree) == (new.commit, new.tree)
    assert lock.submodules[0].commit == new.sub_commit
    assert lock.why == "a better name"
    assert "is our pin" in pin(tools, "--check")
    # And it is one that can be fetched.
    tools.run("fetch", "--lock", lock_file, "--cache", tools.folder / "other")


def test_a_repair_that_no_longer_applies(moving: Upstream, tools: Tools) -> None:
    commit = change(moving, ANCHOR, "device.makeLibrary(source: source, options: nil)")
    before = (tools.folder / "lock.toml").read_text(encoding="utf-8")
    told = pin(tools, commit, "--why", "newer", "--accept-changes", status=1)
    assert "found 0 times" in told
    assert "The lock was not written" in told
    assert (tools.folder / "lock.toml").read_text(encoding="utf-8") == before


def test_a_repaired_file_that_changed_has_to_be_read(moving: Upstream, tools: Tools) -> None:
    commit = change(moving, "public struct Kernel {", "/// New.\npublic struct Kernel {")
    told = pin(tools, commit, "--why", "newer", status=1)
    assert f"{SUBMODULE}/{ATTENTION}" in told
    assert "--accept-changes" in told
    assert locks.load(tools.folder / "lock.toml").upstream.commit == moving.first.commit
    pin(tools, commit, "--why", "newer", "--accept-changes")
    assert locks.load(tools.folder / "lock.toml").upstream.commit == commit
    # The overlay now expects the changed file, and keeps everything else.
    again = pin(tools, commit, "--dry-run")
    assert "repaired files that changed: none" in again
    assert len(overlay.load(tools.folder / "overlay").edits) == 3


def test_an_unknown_reference(moving: Upstream, tools: Tools) -> None:
    assert "has no branch or tag 'v9'" in pin(tools, "v9", "--check", status=1)


def test_another_set_of_submodules(moving: Upstream, tools: Tools) -> None:
    (moving.super / ".gitmodules").unlink()
    commit = moving.commit_without_submodule("drop it")
    told = pin(tools, commit, "--why", "newer", status=1)
    assert "[[submodules]]" in told
