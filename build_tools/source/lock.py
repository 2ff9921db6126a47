"""The lock file: which commits are built, what they must contain, and what the build needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import tomlkit
from tomlkit.exceptions import TOMLKitError

from build_tools.support.errors import LockError
from build_tools.support.files import write_text

DEFAULT = Path(__file__).with_name("upstream.toml")
SCHEMA = 1
SCHEMES = ("https", "git", "http", "file")
_OBJECT_ID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class HashedFile:
    """A file, relative to its repository, and the SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One pinned repository; ``path`` is where it lies in the superproject ("" for itself)."""

    path: str
    url: str
    commit: str
    tree: str
    licences: tuple[HashedFile, ...]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """Everything that the build takes from outside this repository."""

    name: str
    date: str
    why: str
    upstream: Repository
    submodules: tuple[Repository, ...]
    header: HashedFile
    product: str
    requires: Mapping[str, str]
    shader_packs: tuple[HashedFile, ...] = ()

    @property
    def repositories(self) -> tuple[Repository, ...]:
        """The superproject, then its submodules."""
        return (self.upstream, *self.submodules)

    @property
    def commits(self) -> dict[str, str]:
        """The pinned commit of each, by path or name."""
        return {repo.path or self.name: repo.commit for repo in self.repositories}


def load(path: Path = DEFAULT) -> Lock:
    """Read and check the lock at ``path``.

    Raises:
        LockError: The file is missing, is not TOML, or a value is missing or malformed.

    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"the lock {path} cannot be read: {error}"
        raise LockError(msg) from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        msg = f"the lock {path} is not valid TOML: {error}"
        raise LockError(msg) from error
    except LockError as error:
        msg = f"the lock {path} is not usable: {error}. Restore it from version control."
        raise LockError(msg) from error


def parse(text: str) -> Lock:
    """Turn the text of a lock into a `Lock`."""
    data = tomlkit.parse(text).unwrap()
    if data.get("schema") != SCHEMA:
        msg = f"schema is {data.get('schema')!r}, this version reads {SCHEMA}"
        raise LockError(msg)
    upstream, build, abi = _table(data, "upstream"), _table(data, "build"), _table(data, "abi")
    submodules = tuple(
        _repository(entry, path=_relative(entry, "path")) for entry in data.get("submodules", [])
    )
    return Lock(
        name=_text(upstream, "name"),
        date=_text(upstream, "date"),
        why=_text(upstream, "why").strip(),
        upstream=_repository(upstream, path=""),
        submodules=submodules,
        header=_hashed(abi, "header"),
        product=_text(build, "product"),
        requires={str(k): str(v) for k, v in _table(build, "requires").items()},
        shader_packs=tuple(_hashed(item, "path") for item in data.get("shader_packs", [])),
    )


def rewrite(path: Path, lock: Lock) -> None:
    """Write ``lock`` over the file at ``path``, keeping its comments; whole or not at all."""
    document: Any = tomlkit.parse(path.read_text(encoding="utf-8"))
    document["upstream"]["date"] = lock.date
    if document["upstream"]["why"].strip() != lock.why:
        document["upstream"]["why"] = tomlkit.string(lock.why, multiline="\n" in lock.why)
    _rewrite_repository(document["upstream"], lock.upstream)
    for entry, module in zip(document.get("submodules", []), lock.submodules, strict=True):
        entry["path"] = module.path
        _rewrite_repository(entry, module)
    document["abi"]["header"] = lock.header.path
    document["abi"]["sha256"] = lock.header.sha256
    write_text(path, tomlkit.dumps(document))


def _rewrite_repository(entry: Any, repository: Repository) -> None:
    entry["commit"] = repository.commit
    entry["tree"] = repository.tree
    for table, licence in zip(entry["licences"], repository.licences, strict=True):
        table["path"] = licence.path
        table["sha256"] = licence.sha256


def _repository(entry: Mapping[str, Any], *, path: str) -> Repository:
    licences = tuple(_hashed(item, "path") for item in entry.get("licences", []))
    if not licences:
        msg = f"{path or 'upstream'} names no licence file"
        raise LockError(msg)
    return Repository(
        path=path,
        url=_url(entry),
        commit=_matching(entry, "commit", _OBJECT_ID),
        tree=_matching(entry, "tree", _OBJECT_ID),
        licences=licences,
    )


def _hashed(data: Mapping[str, Any], name: str) -> HashedFile:
    return HashedFile(path=_relative(data, name), sha256=_matching(data, "sha256", _SHA256))


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        msg = f"table [{key}] is missing"
        raise LockError(msg)
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        msg = f"{key} is missing"
        raise LockError(msg)
    return value


def _matching(data: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = _text(data, key)
    if pattern.fullmatch(value) is None:
        msg = f"{key} = {value!r} is not a full lower-case hash"
        raise LockError(msg)
    return value


def _relative(data: Mapping[str, Any], key: str) -> str:
    value = _text(data, key)
    parts = PurePosixPath(value).parts
    unsafe = {"..", ".", ".git"} & {part.lower() for part in value.split("/")}
    if value.startswith("/") or "\\" in value or unsafe or "/".join(parts) != value:
        msg = f"{key} = {value!r} is not a plain path inside the repository"
        raise LockError(msg)
    return value


def _url(data: Mapping[str, Any]) -> str:
    value = _text(data, "url")
    if urlsplit(value).scheme not in SCHEMES:
        msg = f"url = {value!r} must start with one of {', '.join(s + '://' for s in SCHEMES)}"
        raise LockError(msg)
    return value
