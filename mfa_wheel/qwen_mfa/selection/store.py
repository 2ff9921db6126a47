"""One file of records in the user's cache folder, for one environment and many processes.

A file that cannot be used (unreadable, of an older layout, of another environment, altered, no
regular file, too large) is ignored with a note, and replaced at the next write. Where nothing can
be written, records live as long as the process. No times of day are kept or compared: clocks jump.

Records decide what runs. So they are taken only from a folder and a file that are ours, or root's,
and that nobody else can write to: `qwen_mfa.files` checks what was opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_mfa import files, forks, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
MAX_BYTES = 4 << 20  # a record has some 300
_LOCK_POLL = 0.02
_WRITE_PATIENCE = 5.0

logger = logging.getLogger("qwen_mfa")


def folder() -> Path:
    """Return the cache folder: ``QWEN_MFA_CACHE_DIR``, or the system's place for caches."""
    return settings.current().cache_dir or _usual_folder()


def _usual_folder() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # no home at all; whoever makes this one first, it is ours or not used
        return Path(tempfile.gettempdir()) / f"qwen-mfa-{os.geteuid()}"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "qwen-mfa"
    chosen = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251 - not one of ours
    return Path(chosen or home / ".cache") / "qwen-mfa"


class Store:
    """Records (JSON objects) by key, for one environment.

    Attributes:
        path: The file.
        notes: What went wrong with it, in words; for people.

    """

    def __init__(self, place: Path, environment: dict[str, Any]) -> None:
        """Read the records of ``environment`` (JSON values, the file's identity) in ``place``."""
        text = json.dumps(environment, sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.path = place / f"decisions-{self._identity[:16]}.json"
        self.notes: list[str] = []
        self._warned = False
        self._environment = environment
        self._records: dict[str, dict[str, Any]] = {}
        self._unsaved: dict[str, dict[str, Any] | None] = {}
        self._seen: tuple[int, ...] = ()
        self._lock = forks.lock()
        self.refresh()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of ``key``, if there is one."""
        return self._records.get(key)

    def records(self) -> dict[str, dict[str, Any]]:
        """Return a copy of all records."""
        return dict(self._records)

    def put(self, key: str, record: dict[str, Any] | None) -> None:
        """Keep ``record`` (``None``: drop it), in the file too if possible. Never raises."""
        with self._lock:
            self._unsaved[key] = record
            self._records = self._with_unsaved(self._records)
            try:
                with self.folder() as place, _locked(self._lock_name("write"), place) as mine:
                    if not mine:
                        self.note("another process holds its lock; nothing was written")
                        return
                    self._write(self._with_unsaved(self._read(place)), place)
            except OSError as error:
                self._note_unusable("it cannot be written", error)
                return
            self._unsaved = {}

    def refresh(self) -> None:
        """Read what other processes have written since."""
        with self._lock:
            seen = self._stamp()
            if seen and seen != self._seen:
                self._records = self._with_unsaved(self._read_now())
                self._seen = seen

    def clear(self) -> None:
        """Forget everything, the file included."""
        with self._lock:
            self._records, self._unsaved, self._seen = {}, {}, ()
            if self._stamp():
                with contextlib.suppress(OSError), self.folder() as place:
                    os.unlink(self.path.name, dir_fd=place)

    @contextlib.contextmanager
    def measuring(self, patience: float) -> Iterator[bool]:
        """Hold the right to measure in this environment, across processes.

        Yields whether it was granted within ``patience`` seconds. A process that dies gives it
        back. Where locks do not work, it is always granted.
        """
        with contextlib.ExitStack() as stack:
            try:
                place = stack.enter_context(self.folder())
                lock = _locked(self._lock_name("measure"), place, patience)
                mine = stack.enter_context(lock)
            except OSError as error:
                self._note_unusable("its folder cannot be used", error)
                mine = True
            yield mine

    @contextlib.contextmanager
    def folder(self) -> Iterator[int]:
        """Give a descriptor of the folder, which is made if need be.

        Raises:
            OSError: It cannot be used.

        """
        place = self.path.parent
        handle = files.private_folder(place, ours=place == _usual_folder())
        try:
            yield handle
        finally:
            os.close(handle)

    def name_of(self, kind: str, key: str) -> str:
        """Return a file name for something else of this environment, in the same folder."""
        return f"{kind}-{self._identity[:16]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def note(self, text: str) -> None:
        """Keep what is wrong with the file, once."""
        note = f"{self.path}: {text}"
        if note not in self.notes:
            self.notes.append(note)
            logger.info("decisions are not kept or not used: %s", note)

    def _note_unusable(self, what: str, error: OSError) -> None:
        """Note it; where the user chose the folder, warn, once."""
        reason = error.strerror or str(error)
        self.note(f"{what} ({reason})")
        chosen = settings.current().cache_dir
        if chosen is not None and self.path.parent == chosen and not self._warned:
            self._warned = True
            logger.warning(
                "%s=%s cannot be used (%s): what is validated and measured lasts as long as this "
                "process. Name a folder that is yours alone, or unset it",
                settings.CACHE_DIR,
                chosen,
                reason,
            )

    def _lock_name(self, purpose: str) -> str:
        # Of its own per purpose: whoever measures also writes.
        return self.path.with_suffix(f".{purpose}.lock").name

    def _with_unsaved(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        merged = {**records, **self._unsaved}
        return {key: record for key, record in merged.items() if record is not None}

    def _read_now(self) -> dict[str, dict[str, Any]]:
        try:
            with self.folder() as place:
                return self._read(place)
        except OSError as error:
            self._note_unusable("it cannot be read", error)
            return {}

    def _read(self, place: int) -> dict[str, dict[str, Any]]:
        try:
            text = files.read(self.path.name, MAX_BYTES, folder=place).decode()
        except FileNotFoundError:
            return {}
        except OSError as error:
            what = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            self.note(f"it cannot be read ({what or error})")
            return {}
        except UnicodeDecodeError as error:
            self.note(f"it cannot be read ({error})")
            return {}
        flaw, records = self._checked(text)
        if flaw:
            self.note(f"it was ignored: {flaw}")
        return records

    def _checked(self, text: str) -> tuple[str, dict[str, dict[str, Any]]]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return "it is not JSON", {}
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            return "it is of another version of qwen-mfa", {}
        if content.get("environment") != self._environment:
            return "it is of another environment", {}
        records = content.get("records")
        if content.get("sha256") != _digest(records):
            return "it was altered or damaged (its checksum does not fit)", {}
        if not isinstance(records, dict) or not all(isinstance(x, dict) for x in records.values()):
            return "its records are malformed", {}
        return "", records

    def _write(self, records: dict[str, dict[str, Any]], place: int) -> None:
        content = {
            "schema": SCHEMA,
            "environment": self._environment,
            "records": records,
            "sha256": _digest(records),
        }
        # We hold the lock: temporary files are of processes that were killed.
        mark = f".{self.path.stem}-"
        for left in os.listdir(place):
            if left.startswith(mark):
                with contextlib.suppress(OSError):
                    os.unlink(left, dir_fd=place)
        temporary = mark + os.urandom(8).hex()
        try:
            with os.fdopen(files.create(temporary, place), "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1, sort_keys=True)
            os.replace(temporary, self.path.name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=place)
            raise
        self._records = records
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.path.lstat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _digest(records: object) -> str:
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _locked(name: str, place: int, patience: float = _WRITE_PATIENCE) -> Iterator[bool]:
    with forks.kept_from_children(files.open_lock(name, place)) as handle:
        mine = _flock(handle, patience)
        try:
            yield mine
        finally:
            # Closing does not unlock where a forked child still has the file.
            if mine:
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)


def _flock(handle: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while not _flock_now(handle):
        if time.monotonic() >= end:
            return False
        time.sleep(_LOCK_POLL)
    return True


def _flock_now(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # this file system has no locks
    return True
