"""A new pin: what upstream has now, what changed since ours, and whether our repairs apply."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from build_tools.source import fetch
from build_tools.source import overlay as overlays
from build_tools.source.git import GITLINK, Git
from build_tools.source.header import declared
from build_tools.source.lock import HashedFile, Lock, Repository
from build_tools.source.overlay import Overlay
from build_tools.source.remotes import Remotes, ask
from build_tools.support.errors import LockError, OverlayError, SourceError

_OBJECT_ID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A new lock and what it would change.

    Attributes:
        lock: The new lock.
        root: The new source, fetched and verified.
        commits: For each repository, the commits that are new; empty where there is no history.
        changed: Files that our repairs touch and upstream changed.
        misfits: Repairs that can no longer be made.
        added: Functions that the ABI header gained.
        removed: Functions that it lost.

    """

    lock: Lock
    root: Path
    commits: dict[str, list[str]]
    changed: list[str]
    misfits: list[str]
    added: list[str]
    removed: list[str]


def newest(lock: Lock, *, remotes: Remotes, ref: str = "HEAD") -> str:
    """Return the commit that ``ref`` (branch, tag, HEAD or full hash) names upstream.

    Raises:
        SourceError: Upstream cannot be reached, or has no such reference.

    """
    if _OBJECT_ID.fullmatch(ref):
        return ref
    advertised: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        git = Git(Path(folder))
        url, request = lock.upstream.url, lambda at: advertised.update(git.remote_refs(at))
        ask(remotes, url, request, what=lock.name)
    for name in (f"refs/tags/{ref}^{{}}", ref, f"refs/heads/{ref}", f"refs/tags/{ref}"):
        if name in advertised:
            return advertised[name]
    msg = f"{lock.upstream.url} has no branch or tag {ref!r}; give one, or a full commit hash"
    raise SourceError(msg)


def propose(
    lock: Lock, commit: str, repairs: Overlay, *, why: str, cache: Path, remotes: Remotes
) -> Proposal:
    """Fetch ``commit`` and its submodules, verify them, and compare them with ``lock``.

    Raises:
        SourceError: Something cannot be fetched, or is not safe to use.
        LockError: Upstream's submodules are other ones than the lock's.

    """
    with tempfile.TemporaryDirectory() as folder:
        git = Git(Path(folder))
        fresh = _pin(git, lock, commit, why=why, remotes=remotes)
        commits = _history(lock, fresh, remotes)
    old = fetch.obtain(lock, cache=cache, remotes=remotes)
    new = fetch.obtain(fresh, cache=cache, remotes=remotes)
    before = set(declared((old.root / lock.header.path).read_text(encoding="utf-8")))
    after = set(declared((new.root / fresh.header.path).read_text(encoding="utf-8")))
    return Proposal(
        lock=fresh,
        root=new.root,
        commits=commits,
        changed=overlays.changed_files(repairs, new.root),
        misfits=overlays.misfits(repairs, new.root),
        added=sorted(after - before),
        removed=sorted(before - after),
    )


def require_fit(proposal: Proposal, *, accept: bool) -> None:
    """Refuse a proposal to which the repairs no longer apply.

    Raises:
        OverlayError: An anchor is gone, or a repaired file changed and nobody accepted that.

    """
    if proposal.misfits:
        lines = "\n".join(f"  {line}" for line in proposal.misfits)
        msg = (
            f"the repairs no longer apply:\n{lines}\n"
            "The lock was not written. Adapt swift_pkg/overlay first (docs/building.md)."
        )
        raise OverlayError(msg)
    if proposal.changed and not accept:
        lines = "\n".join(f"  {line}" for line in proposal.changed)
        msg = (
            f"upstream changed files that we repair:\n{lines}\n"
            "Every anchor is still there. Read the changes, then run this again with "
            "--accept-changes. The lock was not written."
        )
        raise OverlayError(msg)


def _pin(git: Git, lock: Lock, commit: str, *, why: str, remotes: Remotes) -> Lock:
    upstream = _fetch(git, lock.upstream, commit, remotes)
    entries = git.entries(commit)
    recorded = {e.path: e.oid for e in entries if e.mode == GITLINK}
    expected = {module.path for module in lock.submodules}
    if set(recorded) != expected:
        msg = (
            f"commit {commit} has the submodules {sorted(recorded)}, the lock has "
            f"{sorted(expected)}. Edit the [[submodules]] of the lock by hand, then pin again."
        )
        raise LockError(msg)
    modules = tuple(_fetch(git, m, recorded[m.path], remotes) for m in lock.submodules)
    header = git.blob(commit, lock.header.path)
    if header is None:
        msg = f"commit {commit} has no {lock.header.path}; the lock was not written"
        raise LockError(msg)
    return replace(
        lock,
        date=git.date_of(commit),
        why=why,
        upstream=upstream,
        submodules=modules,
        header=replace(lock.header, sha256=hashlib.sha256(header).hexdigest()),
    )


def _fetch(git: Git, repo: Repository, commit: str, remotes: Remotes) -> Repository:
    git.fetch(remotes, repo.url, commit, what=f"{repo.url} {commit[:12]}")
    licences = []
    for licence in repo.licences:
        content = git.blob(commit, licence.path)
        if content is None:
            msg = f"{repo.url} at {commit} has no {licence.path}; it cannot be redistributed"
            raise LockError(msg)
        licences.append(HashedFile(path=licence.path, sha256=hashlib.sha256(content).hexdigest()))
    return replace(repo, commit=commit, tree=git.tree_of(commit), licences=tuple(licences))


def _history(old: Lock, new: Lock, remotes: Remotes) -> dict[str, list[str]]:
    """List new commits. For reading only, so that a server without history costs nothing else."""
    found: dict[str, list[str]] = {}
    for before, after in zip(old.repositories, new.repositories, strict=True):
        if before.commit == after.commit:
            continue
        name, what = after.path or new.name, f"history of {after.url}"
        with tempfile.TemporaryDirectory() as folder:
            git = Git(Path(folder))
            try:
                git.fetch(remotes, after.url, after.commit, what=what, history=True)
                found[name] = git.log(before.commit, after.commit)
            except SourceError:
                found[name] = []
    return found
