"""The miniature upstream as git repositories, its lock and its overlay."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit

from build_tools.source import overlay as overlays
from build_tools.support import files
from build_tools.support.paths import ROOT

if TYPE_CHECKING:
    from tests.standins.servers import GitServer

MINIATURE = Path(__file__).parent
SUBMODULE = "metal-flash-attention"
HEADER = "Sources/MFAFFI/include/mfa_ffi.h"
IDENTITY = {
    "GIT_AUTHOR_NAME": "Upstream",
    "GIT_AUTHOR_EMAIL": "upstream@example.org",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
    "GIT_COMMITTER_NAME": "Upstream",
    "GIT_COMMITTER_EMAIL": "upstream@example.org",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(folder: Path, *arguments: str, text: bytes | None = None) -> str:
    """Run git in ``folder``, away from this machine's configuration."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=os.environ | IDENTITY,
        input=text,
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().strip()


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """The commits of one state of the miniature."""

    commit: str
    tree: str
    sub_commit: str
    sub_tree: str


class Upstream:
    """Two served repositories that tests may add commits to, and a work tree of each."""

    def __init__(self, server: GitServer, folder: Path, *, prefix: str = "") -> None:
        self.server = server
        self.owner = f"{prefix}/owner" if prefix else "owner"
        self.super = folder / "super"
        self.sub = folder / "sub"
        for name, work in (("super", self.super), ("sub", self.sub)):
            shutil.copytree(MINIATURE / name, work)
            git(work, "init", "--quiet", "--initial-branch=main")
            bare = server.root / self.owner / f"{name}.git"
            git(work, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
            git(work, "remote", "add", "served", str(bare))
        # What a clone could get wrong: modes, links, line endings, substitutions; and some bulk,
        # so that a connection can break in the middle of it.
        (self.super / "run.sh").write_text("#!/bin/sh\n", encoding="utf-8")
        (self.super / "run.sh").chmod(0o755)
        (self.super / "link").symlink_to("Sources/MFAFFI")
        (self.super / ".gitattributes").write_text(
            "*.txt text eol=crlf ident export-subst filter=machine\n", encoding="utf-8"
        )
        (self.super / "notes.txt").write_text("one\n$Id$\n", encoding="utf-8")
        (self.super / "bulk.bin").write_bytes(random.Random(1).randbytes(400_000))  # noqa: S311
        self.declare(self.sub_url)
        self.first = self.commit("first")

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.owner}/super.git"

    @property
    def sub_url(self) -> str:
        return f"{self.server.url}/{self.owner}/sub.git"

    def declare(self, url: str, path: str = SUBMODULE) -> None:
        """Write .gitmodules."""
        text = f'[submodule "{SUBMODULE}"]\n\tpath = {path}\n\turl = {url}\n'
        (self.super / ".gitmodules").write_text(text, encoding="utf-8")

    def commit(self, message: str) -> Pinned:
        """Commit both work trees as they are, and serve them."""
        sub = self._commit(self.sub, message)
        commit = self._commit(self.super, message, f"160000,{sub},{SUBMODULE}")
        return self.pinned(commit, sub)

    def pinned(self, commit: str, sub: str) -> Pinned:
        return Pinned(
            commit=commit,
            tree=git(self.super, "rev-parse", f"{commit}^{{tree}}"),
            sub_commit=sub,
            sub_tree=git(self.sub, "rev-parse", f"{sub}^{{tree}}"),
        )

    def commit_tree(self, tree: str) -> str:
        """Commit a tree that a test has put together by hand, and serve it."""
        commit = git(self.super, "commit-tree", tree, "-m", "crafted")
        git(self.super, "push", "--quiet", "served", f"{commit}:refs/heads/crafted-{commit[:8]}")
        return commit

    def commit_without_submodule(self, message: str) -> str:
        git(self.super, "rm", "--quiet", "--cached", SUBMODULE)
        return self._commit(self.super, message)

    def _commit(self, work: Path, message: str, gitlink: str | None = None) -> str:
        git(work, "add", "--all", ".")
        if gitlink is not None:
            git(work, "update-index", "--add", "--cacheinfo", gitlink)
        git(work, "commit", "--quiet", "--allow-empty", "-m", message)
        git(work, "push", "--quiet", "--force", "served", "HEAD:refs/heads/main")
        return git(work, "rev-parse", "HEAD")

    def write_lock(self, path: Path, pinned: Pinned | None = None, **changes: Any) -> Path:
        """Write a lock for ``pinned``; ``changes`` replace single values (``sub_`` for its own)."""
        state = pinned or self.first
        licences = [
            {"path": "LICENSE", "sha256": files.sha256(work / "LICENSE")}
            for work in (self.super, self.sub)
        ]
        values: dict[str, Any] = {
            "url": self.url,
            "commit": state.commit,
            "tree": state.tree,
            "licences": [licences[0]],
            "sub_path": SUBMODULE,
            "sub_url": self.sub_url,
            "sub_commit": state.sub_commit,
            "sub_tree": state.sub_tree,
            "sub_licences": [licences[1]],
            "requires": {"swift": "6.0"},
            "header_sha256": files.sha256(self.super / HEADER),
        } | changes
        sub = {k.removeprefix("sub_"): v for k, v in values.items() if k.startswith("sub_")}
        data = {
            "schema": 1,
            "upstream": {
                "name": "miniature",
                "date": "2026-01-02",
                "why": "it is small",
                **{k: values[k] for k in ("url", "commit", "tree", "licences")},
            },
            "submodules": [sub],
            "abi": {"header": HEADER, "sha256": values["header_sha256"]},
            "build": {"product": "MFAFFI", "requires": values["requires"]},
        }
        path.write_text(tomlkit.dumps(data), encoding="utf-8")
        return path


def miniature_tree(target: Path) -> Path:
    """Lay the miniature out as a fetched source, without git."""
    shutil.copytree(MINIATURE / "super", target)
    shutil.copytree(MINIATURE / "sub", target / SUBMODULE)
    return target


def write_overlay(folder: Path) -> Path:
    """Write the miniature's overlay: the real Swift files, its own anchors, their hashes."""
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "swift_pkg" / "overlay" / "Sources", folder / "Sources")
    shutil.copy(MINIATURE / "overlay.toml", folder / "overlay.toml")
    tree = miniature_tree(folder / "tree")
    overlays.accept(overlays.load(folder), tree)
    shutil.rmtree(tree)
    return folder
