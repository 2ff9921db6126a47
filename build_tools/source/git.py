"""Git, cut off from this machine: no hooks, filters, credentials or configuration but our own.

Nothing is ever checked out by git. Objects are fetched into a bare repository, and `export` writes
the blobs of one tree byte by byte, so attributes, line-ending rules and filters have no part in it.
"""

from __future__ import annotations

import os
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from build_tools.source.remotes import Remotes, ask
from build_tools.support import process
from build_tools.support.errors import SourceError

CONFIG = """\
[core]
    hooksPath = /dev/null
    fsmonitor = false
    attributesFile = /dev/null
[credential]
    helper =
[fetch]
    fsckObjects = true
[gc]
    auto = 0
[maintenance]
    auto = false
[http]
    lowSpeedLimit = 1000
    lowSpeedTime = 30
[protocol]
    version = 2
[safe]
    directory = *
"""
# What may come from the machine: where programs are, and how to reach the network.
PASSED_ON = (
    "PATH", "TMPDIR", "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY",
    "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
)  # fmt: skip
HINT = "Install git (Debian: `apt-get install git`; macOS: `xcode-select --install`)."
FILE, EXECUTABLE, SYMLINK, GITLINK = "100644", "100755", "120000", "160000"
# What every file system that we build on can hold below a folder of ours (macOS: 1,024 bytes a
# path, 255 a name), and no source needs.
MAX_DEPTH, MAX_PATH, MAX_NAME = 64, 700, 255
SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One path of a tree: its git mode and object."""

    path: str
    mode: str
    oid: str


class Git:
    """A bare repository in ``folder/objects.git``, and the only way that we call git."""

    def __init__(self, folder: Path) -> None:
        self._program = process.find("git", hint=HINT)
        self.repository = folder / "objects.git"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "gitconfig"
        config.write_text(CONFIG, encoding="utf-8")
        self._env = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            "GIT_ALLOW_PROTOCOL": "https:http:git:file",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": str(folder),
            "LC_ALL": "C",
        }
        if not self.repository.exists():
            self._run("init", "--quiet", "--bare", "--template=", str(self.repository))

    def fetch(
        self, remotes: Remotes, url: str, commit: str, *, what: str, history: bool = False
    ) -> str:
        """Fetch one commit; with ``history`` its ancestors too, but no files.

        Returns:
            The address that had it, of those at which ``url`` can be had.

        Raises:
            SourceError: None had it; ``what`` says what was missed.

        """
        depth = ("--filter=blob:none",) if history else ("--depth=1",)

        def request(address: str) -> None:
            self._run(
                *self._here, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", *depth,
                "--", address, commit, timeout=remotes.timeout,
            )  # fmt: skip

        return ask(remotes, url, request, what=what)

    def remote_refs(self, url: str, *, timeout: float = 60) -> dict[str, str]:
        """Return what ``url`` advertises: name of the reference to commit."""
        text = self._read("ls-remote", "--", url, timeout=timeout).decode(errors="replace")
        pairs = [line.split("\t", 1) for line in text.splitlines() if "\t" in line]
        return {name: commit for commit, name in pairs}

    def tree_of(self, commit: str) -> str:
        """Return the tree that ``commit`` records."""
        return self._read(*self._here, "rev-parse", f"{commit}^{{tree}}").decode().strip()

    def date_of(self, commit: str) -> str:
        """Return the committer date of ``commit``, as YYYY-MM-DD."""
        text = self._read(*self._here, "show", "-s", "--format=%cs", commit)
        return text.decode().strip()

    def entries(self, commit: str) -> list[Entry]:
        """List every path of ``commit``."""
        raw = self._read(*self._here, "ls-tree", "-r", "-z", "--full-tree", commit)
        entries = []
        for line in raw.split(b"\0")[:-1]:
            facts, path = line.split(b"\t", 1)
            mode, _, oid = facts.decode().split(" ")
            try:
                entries.append(Entry(path=path.decode(), mode=mode, oid=oid))
            except UnicodeDecodeError as error:
                msg = f"commit {commit} holds a path that is not UTF-8: {path!r}"
                raise SourceError(msg) from error
        return entries

    def log(self, old: str, new: str) -> list[str]:
        """List the commits that ``new`` has and ``old`` has not, newest first."""
        text = self._read(*self._here, "log", "-z", "--format=%h %cs %s", f"{old}..{new}")
        return [line for line in text.decode(errors="replace").split("\0") if line]

    def gitmodules(self, commit: str) -> dict[str, dict[str, str]]:
        """Return what ``.gitmodules`` of ``commit`` says: name to its settings."""
        raw = self._read(
            *self._here, "config", "--blob", f"{commit}:.gitmodules", "--null", "--list"
        )
        modules: dict[str, dict[str, str]] = {}
        for item in raw.decode(errors="replace").split("\0")[:-1]:
            key, _, value = item.partition("\n")
            section, _, setting = key.rpartition(".")
            modules.setdefault(section.removeprefix("submodule."), {})[setting] = value
        return modules

    def blob(self, commit: str, path: str) -> bytes | None:
        """Return the bytes of ``path`` in ``commit``, or None when it has no such file."""
        command = [self._program, *self._here, "cat-file", "blob", f"{commit}:{path}"]
        done = subprocess.run(command, env=self._env, check=False, capture_output=True, timeout=60)
        return done.stdout if done.returncode == 0 else None

    def export(self, entries: list[Entry], target: Path) -> None:
        """Write ``entries`` below ``target``, each blob as it is."""
        command = [self._program, *self._here, "cat-file", "--batch"]
        with subprocess.Popen(
            command,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            if child.stdin is None or child.stdout is None:  # pragma: no cover - we asked for both
                msg = "git cat-file has no pipes"
                raise SourceError(msg)
            try:
                for entry in entries:
                    if entry.mode != GITLINK:
                        child.stdin.write(f"{entry.oid}\n".encode())
                        child.stdin.flush()
                        _write_entry(target, entry, _read_blob(child.stdout, entry))
                child.stdin.close()
            except BaseException:
                child.kill()
                raise

    @property
    def _here(self) -> tuple[str, str]:
        return ("--git-dir", str(self.repository))

    def _run(self, *arguments: str, timeout: float = 60) -> None:
        process.run([self._program, *arguments], env=self._env, timeout=timeout)

    def _read(self, *arguments: str, timeout: float = 60) -> bytes:
        command = [self._program, *arguments]
        try:
            done = subprocess.run(
                command, env=self._env, check=True, capture_output=True, timeout=timeout
            )
        except subprocess.CalledProcessError as error:
            detail = error.stderr.decode(errors="replace").strip()
            msg = f"git {' '.join(arguments)} failed: {detail}"
            raise SourceError(msg) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            msg = f"git {' '.join(arguments)} failed: {error}"
            raise SourceError(msg) from error
        return done.stdout


def check_paths(entries: list[Entry], *, where: str) -> None:
    """Refuse a tree whose paths could leave it, or could fall together on some file system.

    Raises:
        SourceError: The path at fault, and why.

    """
    seen: dict[str, str] = {}
    links = {_folded(e.path) for e in entries if e.mode == SYMLINK}
    for entry in entries:
        parts = entry.path.split("/")
        if "" in parts or {".", "..", ".git"} & {part.casefold() for part in parts}:
            msg = f"{where} holds the unsafe path {entry.path!r}; it is not used"
            raise SourceError(msg)
        if (
            len(parts) > MAX_DEPTH
            or len(entry.path.encode()) > MAX_PATH
            or max(len(part.encode()) for part in parts) > MAX_NAME
        ):
            msg = (
                f"{where} holds a path that is too long for some file system: {len(parts)} names, "
                f"{len(entry.path.encode())} bytes, {entry.path[:SHOWN]!r}...; it is not used"
            )
            raise SourceError(msg)
        folded = _folded(entry.path)
        # The folders too: two that macOS takes for one would hold each other's files.
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            if (end == len(parts) and folded in seen) or seen.get(_folded(path), path) != path:
                other = seen[_folded(path)]
                msg = f"{where}: {path!r} and {other!r} are one file on macOS"
                raise SourceError(msg)
            seen[_folded(path)] = path
        parents = {str(parent) for parent in PurePosixPath(folded).parents}
        if parents & links:
            msg = f"{where}: {entry.path!r} lies behind a symbolic link; it is not used"
            raise SourceError(msg)


def _folded(path: str) -> str:
    """Return what macOS compares: neither case nor the form of accented letters tells two apart."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _read_blob(stream: IO[bytes], entry: Entry) -> bytes:
    header = stream.readline().decode().split()
    if len(header) != 3 or header[1] != "blob":
        msg = f"git has no object {entry.oid} for {entry.path}: {' '.join(header)}"
        raise SourceError(msg)
    size = int(header[2])
    content = stream.read(size)
    stream.read(1)
    if len(content) != size:
        msg = f"git stopped in the middle of {entry.path}"
        raise SourceError(msg)
    return content


def _write_entry(target: Path, entry: Entry, content: bytes) -> None:
    path = target / entry.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.mode == SYMLINK:
        if not 0 < len(content) <= MAX_PATH or b"\0" in content:
            msg = (
                f"the symbolic link {entry.path!r} cannot be made: {len(content)} bytes, "
                f"{content[:SHOWN]!r}"
            )
            raise SourceError(msg)
        link = content.decode(errors="surrogateescape")
        inside = os.path.normpath(os.path.join(os.path.dirname(entry.path), link))  # noqa: PTH118, PTH120 - text, not a file
        if link.startswith("/") or inside == ".." or inside.startswith("../"):
            msg = f"the symbolic link {entry.path!r} points outside the source: {link!r}"
            raise SourceError(msg)
        path.symlink_to(link)
        return
    path.write_bytes(content)
    path.chmod(0o755 if entry.mode == EXECUTABLE else 0o644)
