"""From the lock to a source tree that is what the lock says, byte for byte.

A tree is fetched and checked under a temporary name and renamed into the cache when all is well;
the cache is checked again each time that it is used. Two processes wait for each other.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build_tools.source.git import GITLINK, Entry, Git, check_paths
from build_tools.source.lock import Lock, Repository
from build_tools.source.remotes import Remotes, same_repository
from build_tools.source.tree import tree_hash
from build_tools.support import files
from build_tools.support.console import say, step
from build_tools.support.errors import SourceError
from build_tools.support.flock import locked
from build_tools.support.paths import ROOT

CACHE = ROOT / ".cache"
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Source:
    """A verified tree: the superproject with its submodules in place."""

    root: Path
    lock: Lock


def key(lock: Lock) -> str:
    """Return the name of the lock's source in the cache: it changes with any commit or tree."""
    parts = [f"{repo.path} {repo.commit} {repo.tree}" for repo in lock.repositories]
    return f"{lock.upstream.commit[:12]}-{files.digest(parts)[:16]}"


def obtain(
    lock: Lock, *, cache: Path, remotes: Remotes | None = None, refresh: bool = False
) -> Source:
    """Return the verified source of ``lock``, fetching what the cache does not hold.

    Args:
        lock: The pin.
        cache: Folder of the cache.
        remotes: Mirror, retries, time limits.
        refresh: Throw the cached tree away first.

    Raises:
        SourceError: Nothing could be fetched, or it is not what the lock says. The cache then holds
            no trace of it.

    """
    sources = cache / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    name = key(lock)
    entry = sources / name
    with locked(sources / f"{name}.lock"):
        # Left by a run that was killed; its lock is ours now, so nobody is using them.
        for stale in sources.glob(f".{name}.*"):
            files.remove_tree(stale)
        if refresh:
            files.remove_tree(entry)
        if not entry.exists():
            _fetch(lock, entry, remotes=remotes or Remotes())
        else:
            say(f"source {name}: cached")
        verify(entry / "tree", lock, listing=entry / "listing.json")
    return Source(root=entry / "tree", lock=lock)


def verify(root: Path, lock: Lock, *, listing: Path) -> None:
    """Hold every file below ``root`` against the tree hashes and licences of ``lock``.

    Raises:
        SourceError: Names what was changed, added or removed since the fetch.

    """
    found: dict[str, str] = {}
    wrong = []
    for repo in lock.repositories:
        here: dict[str, str] = {}
        actual = tree_hash(root / repo.path, gitlinks=_gitlinks(lock, repo), listing=here)
        prefix = f"{repo.path}/" if repo.path else ""
        found |= {f"{prefix}{path}": facts for path, facts in here.items()}
        if actual != repo.tree:
            wrong.append(f"{repo.path or 'upstream'}: tree {actual}, the lock says {repo.tree}")
    if wrong:
        changed = _changes(found, listing)
        msg = (
            f"the cached source {root} was changed: {'; '.join(wrong)}{changed}. "
            "Run `.venv/bin/python -m build_tools fetch --refresh` to fetch it anew."
        )
        raise SourceError(msg)
    header = root / lock.header.path
    if not header.is_file() or files.sha256(header) != lock.header.sha256:
        msg = f"the ABI header {lock.header.path} is not the one that the lock names; pin anew"
        raise SourceError(msg)
    for repo in lock.repositories:
        for licence in repo.licences:
            path = root / repo.path / licence.path
            if not path.is_file() or files.sha256(path) != licence.sha256:
                msg = (
                    f"the licence {licence.path} of {repo.url} is missing or is not the one that "
                    "the lock names; read it, then write a new pin"
                )
                raise SourceError(msg)


def _fetch(lock: Lock, entry: Path, *, remotes: Remotes) -> None:
    with tempfile.TemporaryDirectory(
        dir=entry.parent, prefix=f".{entry.name}.", ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder)
        tree = partial / "entry" / "tree"
        tree.mkdir(parents=True)
        listing: dict[str, str] = {}
        try:
            for repo in lock.repositories:
                entries = _fetch_one(lock, repo, partial, remotes=remotes)
                with step(f"write {repo.path or lock.name}"):
                    Git(partial).export(entries, tree / repo.path)
                prefix = f"{repo.path}/" if repo.path else ""
                listing |= {
                    f"{prefix}{e.path}": f"{e.mode} {e.oid}" for e in entries if e.mode != GITLINK
                }
            files.write_json(partial / "entry" / "listing.json", listing)
        except OSError as error:
            msg = (
                f"the source could not be written to {entry.parent}: {error.strerror or error}. "
                "Free some room, or choose another folder with --cache."
            )
            raise SourceError(msg) from error
        verify(tree, lock, listing=partial / "entry" / "listing.json")
        (partial / "entry").rename(entry)


def _fetch_one(lock: Lock, repo: Repository, folder: Path, *, remotes: Remotes) -> list[Entry]:
    name = repo.path or lock.name
    git = Git(folder)
    with step(f"fetch {name} {repo.commit[:12]}"):
        address = git.fetch(remotes, repo.url, repo.commit, what=name)
    tree = git.tree_of(repo.commit)
    if tree != repo.tree:
        msg = (
            f"{address} gives commit {repo.commit} the tree {tree}, but the lock says {repo.tree}. "
            "The lock or the server is wrong; nothing was kept."
        )
        raise SourceError(msg)
    entries = git.entries(repo.commit)
    check_paths(entries, where=name)
    _check_submodules(git, lock, repo, entries)
    return entries


def _check_submodules(git: Git, lock: Lock, repo: Repository, entries: list[Entry]) -> None:
    """Hold the submodules that the tree records, and their URLs, against the lock."""
    recorded = {e.path: e.oid for e in entries if e.mode == GITLINK}
    expected = _gitlinks(lock, repo)
    where = repo.path or lock.name
    for path in sorted(recorded.keys() | expected.keys()):
        if recorded.get(path) != expected.get(path):
            msg = (
                f"submodule {path} of {where}: the tree records {recorded.get(path, 'nothing')}, "
                f"the lock says {expected.get(path, 'nothing')}. Write a new pin, or restore it."
            )
            raise SourceError(msg)
    declared = git.gitmodules(repo.commit) if any(e.path == ".gitmodules" for e in entries) else {}
    prefix = f"{repo.path}/" if repo.path else ""
    urls = {module.path: module.url for module in lock.submodules}
    for name, settings in declared.items():
        path, url = settings.get("path", ""), settings.get("url", "")
        if path not in expected:
            msg = f"{where}: submodule {name!r} has the path {path!r}, which is not in the lock"
            raise SourceError(msg)
        if not same_repository(url, urls[f"{prefix}{path}"]):
            msg = (
                f"{where}: submodule {path} comes from {url!r}, the lock says "
                f"{urls[f'{prefix}{path}']!r}; it is not followed"
            )
            raise SourceError(msg)


def _gitlinks(lock: Lock, repo: Repository) -> dict[str, str]:
    """Return the submodules that lie directly in ``repo``, by their path in it."""
    prefix = f"{repo.path}/" if repo.path else ""
    inside = {
        m.path: m.commit
        for m in lock.submodules
        if m.path != repo.path and m.path.startswith(prefix)
    }
    nested = {p for p in inside for other in inside if p.startswith(f"{other}/")}
    return {p.removeprefix(prefix): c for p, c in inside.items() if p not in nested}


def _changes(found: dict[str, str], listing: Path) -> str:
    try:
        expected: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    names = sorted(p for p in found.keys() | expected.keys() if found.get(p) != expected.get(p))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})" if names else ""
