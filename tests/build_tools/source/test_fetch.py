"""`fetch`: what comes in is what the lock says, and the bad days leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from build_tools.source import fetch
from build_tools.source import lock as locks
from build_tools.source.remotes import Remotes
from build_tools.support.errors import LockError, SourceError
from build_tools.support.paths import ROOT
from tests.standins.servers import HOST, GitServer, Proxy, free_port, tiny_disk
from tests.standins.upstream.repositories import SUBMODULE, git

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build_tools.conftest import Tools
    from tests.standins.upstream.repositories import Pinned, Upstream

QUICK = Remotes(attempts=2, backoff=0.01, timeout=20)


def obtain(lock: Path, cache: Path, remotes: Remotes = QUICK) -> Path:
    return fetch.obtain(locks.load(lock), cache=cache, remotes=remotes).root


def assert_nothing_left(cache: Path) -> None:
    """No entry, and no temporary name; lock files may stay."""
    names = {path.name for path in (cache / "sources").iterdir()}
    assert all(name.endswith(".lock") for name in names), names


def refused(lock: Path, cache: Path, *parts: str, remotes: Remotes = QUICK) -> SourceError:
    with pytest.raises(SourceError) as caught:
        obtain(lock, cache, remotes)
    for part in parts:
        assert part in str(caught.value)
    assert_nothing_left(cache)
    return caught.value


def test_the_tree_comes_byte_for_byte(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    old = os.umask(0o077)
    try:
        root = obtain(upstream.write_lock(tmp_path / "lock"), cache)
    finally:
        os.umask(old)
    assert (root / "notes.txt").read_bytes() == b"one\n$Id$\n"
    assert (root / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (root / "notes.txt").stat().st_mode & 0o777 == 0o644
    assert (root / "link").readlink().as_posix() == "Sources/MFAFFI"
    assert (root / SUBMODULE / "LICENSE").is_file()
    assert not list(root.rglob(".git"))


def test_the_machines_git_has_no_part_in_it(
    upstream: Upstream, tmp_path: Path, cache: Path, tools: Tools
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-merge", "pre-auto-gc"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n", encoding="utf-8")
        (hooks / name).chmod(0o755)
    (tmp_path / "gitconfig").write_text(
        f"[core]\n\thooksPath = {hooks}\n\tautocrlf = true\n"
        f'[url "git://{HOST}:1/"]\n\tinsteadOf = {upstream.server.url}/\n'
        f'[filter "machine"]\n\tsmudge = sed s/one/two/\n\trequired = true\n',
        encoding="utf-8",
    )
    lock = upstream.write_lock(tmp_path / "lock")
    tools.run(
        "fetch", "--lock", lock, "--cache", cache,
        GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"),
        HOME=str(tmp_path),
        GIT_DIR="/nonexistent",
        GIT_TEMPLATE_DIR=str(tmp_path),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="core.hooksPath",
        GIT_CONFIG_VALUE_0=str(hooks),
    )  # fmt: skip
    assert not (tmp_path / "hook-ran").exists()
    (entry,) = (path for path in (cache / "sources").iterdir() if path.is_dir())
    assert (entry / "tree" / "notes.txt").read_bytes() == b"one\n$Id$\n"


def test_a_commit_that_the_server_does_not_have(
    upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    lock = upstream.write_lock(tmp_path / "lock", commit="1" * 40)
    refused(lock, cache, "not our ref", upstream.url, "--mirror")


def test_a_commit_with_another_tree(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock", tree="2" * 40)
    refused(lock, cache, upstream.first.tree, "2" * 40, "nothing was kept")


def test_a_submodule_with_another_tree(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock", sub_tree="3" * 40)
    refused(lock, cache, upstream.first.sub_tree, "3" * 40)


def test_a_submodule_that_moved(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    other = git(upstream.sub, "commit-tree", upstream.first.sub_tree, "-m", "other")
    lock = upstream.write_lock(tmp_path / "lock", sub_commit=other)
    refused(lock, cache, SUBMODULE, upstream.first.sub_commit, other)


def crafted(
    upstream: Upstream, *entries: str, modules: str | None = None, drop_sub: bool = False
) -> Pinned:
    """Commit the first tree with more ``mktree`` lines in it, and another .gitmodules."""
    lines = git(upstream.super, "ls-tree", upstream.first.commit).splitlines()
    if modules is not None:
        blob = git(upstream.super, "hash-object", "-w", "--stdin", text=modules.encode())
        lines = [line for line in lines if not line.endswith("\t.gitmodules")]
        lines.append(f"100644 blob {blob}\t.gitmodules")
    if drop_sub:
        lines = [line for line in lines if not line.endswith(f"\t{SUBMODULE}")]
    text = "\n".join([*lines, *entries]) + "\n"
    tree = git(upstream.super, "mktree", "--missing", text=text.encode())
    return upstream.pinned(upstream.commit_tree(tree), upstream.first.sub_commit)


def blob(upstream: Upstream, text: str) -> str:
    return git(upstream.super, "hash-object", "-w", "--stdin", text=text.encode())


@pytest.mark.parametrize("path", ["../outside", "a/../b", "/etc", ".git/modules"])
def test_gitmodules_with_a_path_outside(
    path: str, upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    text = f'[submodule "x"]\n\tpath = {path}\n\turl = {upstream.sub_url}\n'
    lock = upstream.write_lock(tmp_path / "lock", crafted(upstream, modules=text))
    error = refused(lock, cache)
    # git itself refuses some of these on the way in; the others are ours to refuse.
    assert "not in the lock" in str(error) or "fsck" in str(error) or "gitmodules" in str(error)


def test_a_lock_with_a_path_outside(upstream: Upstream, tmp_path: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock", sub_path="../outside")
    with pytest.raises(LockError, match="not a plain path"):
        locks.load(lock)


def test_a_submodule_behind_a_symbolic_link(
    upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    # On macOS `Deps/x` lies behind the link `deps`: one tree, two file systems.
    inner = git(
        upstream.super, "mktree", "--missing",
        text=f"160000 commit {upstream.first.sub_commit}\tx\n".encode(),
    )  # fmt: skip
    pinned = crafted(
        upstream,
        f"120000 blob {blob(upstream, '/tmp')}\tdeps",
        f"040000 tree {inner}\tDeps",
    )
    lock = upstream.write_lock(tmp_path / "lock", pinned)
    refused(lock, cache, "Deps/x", "behind a symbolic link")


def test_paths_that_are_one_file_on_macos(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    pinned = crafted(upstream, f"100644 blob {blob(upstream, 'x')}\tPACKAGE.swift")
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "one file on macOS")


def test_names_that_differ_by_the_form_of_a_letter_only(
    upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    entries = [f"100644 blob {blob(upstream, 'x')}\t{name}" for name in ("caf\u00e9", "cafe\u0301")]
    pinned = crafted(upstream, *entries)
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "one file on macOS")


def test_folders_that_are_one_on_macos(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lines = [nested(upstream, names) for names in (["Docs"], ["docs", "inner"])]
    pinned = crafted(upstream, *lines)
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "'Docs'", "one file on macOS")


def nested(upstream: Upstream, names: list[str]) -> str:
    """Return an ``mktree`` line for a file below folders of those ``names``."""
    line = f"100644 blob {blob(upstream, 'x')}\tfile"
    for name in reversed(names):
        tree = git(upstream.super, "mktree", text=f"{line}\n".encode())
        line = f"040000 tree {tree}\t{name}"
    return line


@pytest.mark.parametrize(
    "names", [["d"] * 300, ["d" * 200] * 4, ["d" * 256]], ids=["deep", "long", "long name"]
)
def test_a_path_that_no_file_system_holds(
    names: list[str], upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    pinned = crafted(upstream, nested(upstream, names))
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "too long for some file")


def test_a_cached_tree_that_somebody_made_deep(
    upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    lock = upstream.write_lock(tmp_path / "lock")
    root = obtain(lock, cache)
    deep = root.joinpath(*["d"] * 1050)
    for folder in [*reversed(deep.parents), deep]:
        folder.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match="deeper than any source"):
        obtain(lock, cache)
    fetch.obtain(locks.load(lock), cache=cache, remotes=QUICK, refresh=True)


def test_a_cached_tree_with_a_fifo(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock")
    os.mkfifo(obtain(lock, cache) / "pipe")
    with pytest.raises(SourceError, match="neither file, folder nor link"):
        obtain(lock, cache)


@pytest.mark.parametrize("target", ["a\0b", "a" * 5000], ids=["NUL", "long"])
def test_a_symbolic_link_that_cannot_be_made(
    target: str, upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    pinned = crafted(upstream, f"120000 blob {blob(upstream, target)}\tescape")
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "escape", "cannot be made")


def test_what_git_refuses_is_asked_for_once_and_not_blamed_on_the_network(
    upstream: Upstream,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # fsck takes a folder named .git for what it is; the server does not look.
    inner = git(upstream.super, "mktree", text=f"100644 blob {blob(upstream, 'x')}\tx\n".encode())
    raw = b"40000 .git\0" + bytes.fromhex(inner)
    tree = git(
        upstream.super, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", text=raw
    )
    pinned = upstream.pinned(upstream.commit_tree(tree), upstream.first.sub_commit)
    patient = Remotes(attempts=3, backoff=60.0, timeout=20)
    before = time.monotonic()
    lock = upstream.write_lock(tmp_path / "lock", pinned)
    error = refused(lock, cache, "hasDotgit", "Git refuses", "malicious", remotes=patient)
    assert time.monotonic() - before < 60
    assert "Check the network" not in str(error)
    assert "again in" not in capsys.readouterr().err


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_a_symbolic_link_that_leaves_the_tree(
    target: str, upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    pinned = crafted(upstream, f"120000 blob {blob(upstream, target)}\tescape")
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "escape", "outside")


def test_a_submodule_that_the_lock_does_not_know(
    upstream: Upstream, tmp_path: Path, cache: Path
) -> None:
    pinned = crafted(upstream, f"160000 commit {upstream.first.sub_commit}\textra")
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, "extra", "nothing")


def test_a_submodule_that_is_gone(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    pinned = crafted(upstream, drop_sub=True)
    refused(upstream.write_lock(tmp_path / "lock", pinned), cache, SUBMODULE, "nothing")


def test_a_submodule_from_somewhere_else(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    text = f'[submodule "x"]\n\tpath = {SUBMODULE}\n\turl = https://example.org/evil.git\n'
    lock = upstream.write_lock(tmp_path / "lock", crafted(upstream, modules=text))
    refused(lock, cache, "https://example.org/evil.git", "not followed")


def test_a_licence_that_changed(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    licences = [{"path": "LICENSE", "sha256": "4" * 64}]
    lock = upstream.write_lock(tmp_path / "lock", licences=licences)
    refused(lock, cache, "LICENSE", "licence")


def test_a_header_that_is_not_the_locks(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock", header_sha256="5" * 64)
    refused(lock, cache, "mfa_ffi.h", "ABI header")


@pytest.mark.parametrize("damage", ["change", "add", "remove", "mode", "submodule"])
def test_a_dirty_cache(damage: str, upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    lock = upstream.write_lock(tmp_path / "lock")
    root = obtain(lock, cache)
    target = root / ("added" if damage == "add" else "notes.txt")
    if damage == "submodule":
        target = root / SUBMODULE / "Package.swift"
    if damage == "remove":
        target.unlink()
    elif damage == "mode":
        target.chmod(0o755)
    else:
        target.write_text("dirty", encoding="utf-8")
    with pytest.raises(SourceError, match="--refresh") as caught:
        obtain(lock, cache)
    assert target.relative_to(root).as_posix() in str(caught.value)
    fresh = fetch.obtain(locks.load(lock), cache=cache, remotes=QUICK, refresh=True)
    assert (fresh.root / "notes.txt").read_bytes() == b"one\n$Id$\n"


def through(upstream: Upstream, port: int) -> str:
    """Return a URL that sends the superproject's requests to another port."""
    return upstream.url.replace(str(upstream.server.port), str(port))


def test_a_truncated_pack(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    with Proxy(upstream.server.port, limit=200_000) as proxy:
        lock = upstream.write_lock(tmp_path / "lock", url=through(upstream, proxy.port))
        refused(lock, cache, "could not be had")
        assert proxy.connections == QUICK.attempts


def test_a_server_that_stops_in_the_middle(upstream: Upstream, tmp_path: Path, cache: Path) -> None:
    with Proxy(upstream.server.port, limit=200_000, stall=True) as proxy:
        lock = upstream.write_lock(tmp_path / "lock", url=through(upstream, proxy.port))
        impatient = Remotes(attempts=1, backoff=0.01, timeout=2)
        refused(lock, cache, "ran longer than 2 s", remotes=impatient)


def test_a_server_that_is_down_then_the_mirror(
    upstream: Upstream,
    server: GitServer,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = upstream.write_lock(tmp_path / "lock", url=through(upstream, free_port()))
    refused(lock, cache, "could not be had", "--mirror DIR|URL")
    assert "again in 0.01 s" in capsys.readouterr().err
    remotes = Remotes(mirror=server.url, attempts=3, backoff=0.01)
    assert (obtain(lock, cache, remotes) / "run.sh").is_file()
    told = capsys.readouterr().err
    assert told.index("again in 0.01 s") < told.index("again in 0.02 s")


@pytest.mark.parametrize(
    "layout", ["owner/{name}.git", "owner/{name}", "owner+{name}/repo", "{name}.git", "{name}"]
)
def test_a_folder_of_mirrors_needs_no_network(
    layout: str, upstream: Upstream, tmp_path: Path, cache: Path, tools: Tools
) -> None:
    mirror = tmp_path / "mirror"
    for name in ("super", "sub"):
        target = mirror / layout.format(name=name)
        target.parent.mkdir(parents=True, exist_ok=True)
        git(mirror, "clone", "--quiet", "--bare",
            str(upstream.server.root / "owner" / f"{name}.git"), str(target))  # fmt: skip
    port = free_port()
    lock = upstream.write_lock(tmp_path / "lock", url=through(upstream, port))
    tools.run("fetch", "--lock", lock, "--cache", cache, "--offline", "--mirror", mirror)
    # The variables say the same.
    tools.run(
        "fetch", "--lock", lock, "--cache", cache, "--refresh",
        QWEN_MFA_MIRROR=str(mirror), QWEN_MFA_OFFLINE="1",
    )  # fmt: skip


def test_offline_without_a_mirror(upstream: Upstream, tmp_path: Path, tools: Tools) -> None:
    lock = upstream.write_lock(tmp_path / "lock")
    done = tools.run("fetch", "--lock", lock, "--offline", status=1)
    assert "--offline needs a mirror" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = tools.run(
        "fetch", "--lock", lock, "--cache", empty, "--offline", "--mirror", empty, status=1
    )
    assert "is not in the mirror" in done.stderr


def test_killed_in_the_middle_and_run_again(
    upstream: Upstream, tmp_path: Path, cache: Path, tools: Tools
) -> None:
    with Proxy(upstream.server.port, limit=200_000, stall=True) as proxy:
        lock = upstream.write_lock(tmp_path / "lock", url=through(upstream, proxy.port))
        child = subprocess.Popen(
            tools.command("fetch", "--lock", lock, "--cache", cache),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not proxy.connections or not list(cache.glob("sources/.*/objects.git")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not [p for p in (cache / "sources").iterdir() if (p / "tree").exists()]
    # The same entry, from a server that works.
    again = upstream.write_lock(tmp_path / "lock")
    root = obtain(again, cache)
    assert (root / "run.sh").is_file()
    assert not list(cache.glob("sources/.*/"))


def test_two_runs_at_once(upstream: Upstream, tmp_path: Path, cache: Path, tools: Tools) -> None:
    lock = upstream.write_lock(tmp_path / "lock")
    children = [
        subprocess.Popen(
            tools.command(
                "fetch", "--lock", lock, "--cache", cache, "--log", tmp_path / f"{number}.log"
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    # One fetched, the other found it there.
    assert sum("cached" in err for _, err in answers) == 1
    assert not list(cache.glob("sources/.*/"))


def test_a_full_disk(upstream: Upstream, tmp_path: Path, tools: Tools) -> None:
    small = tmp_path / "small"
    with tiny_disk(small):
        lock = upstream.write_lock(tmp_path / "lock")
        done = tools.run("fetch", "--lock", lock, "--cache", small, status=1)
        assert "No space left on device" in done.stderr
        assert_nothing_left(small)
