"""One file of records in the user's cache folder, for one environment and many processes.

A file that cannot be used (unreadable, of an older layout, of another environment, altered) is
ignored with a note, and replaced at the next write. Where nothing can be written, records live as
long as the process. No times of day are kept or compared: clocks jump.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "QWEN_MFA_CACHE_DIR"
SCHEMA = 1
_LOCK_POLL = 0.02
_WRITE_PATIENCE = 5.0

logger = logging.getLogger("qwen_mfa")


def folder() -> Path:
    """Return the cache folder: ``QWEN_MFA_CACHE_DIR``, or the system's place for caches."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "qwen-mfa"
    base = os.environ.get("XDG_CACHE_HOME") or str(_home() / ".cache")
    return Path(base) / "qwen-mfa"


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
        self._environment = environment
        self._records: dict[str, dict[str, Any]] = {}
        self._unsaved: dict[str, dict[str, Any] | None] = {}
        self._seen: tuple[int, ...] = ()
        self._lock = threading.Lock()
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
                with self._locked("write", _WRITE_PATIENCE) as mine:
                    if not mine:
                        self._note("another process holds its lock; nothing was written")
                        return
                    self._write(self._with_unsaved(self._read()))
            except OSError as error:
                self._note(f"it cannot be written ({error.strerror or error})")
                return
            self._unsaved = {}

    def refresh(self) -> None:
        """Read what other processes have written since."""
        with self._lock:
            seen = self._stamp()
            if seen and seen != self._seen:
                self._records = self._with_unsaved(self._read())
                self._seen = seen

    def clear(self) -> None:
        """Forget everything, the file included."""
        with self._lock:
            self._records, self._unsaved, self._seen = {}, {}, ()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def measuring(self, patience: float) -> Iterator[bool]:
        """Hold the right to measure in this environment, across processes.

        Yields whether it was granted within ``patience`` seconds. A process that dies gives it
        back. Where locks do not work, it is always granted.
        """
        granted: contextlib.AbstractContextManager[bool]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            granted = self._locked("measure", patience)
            mine = granted.__enter__()
        except OSError as error:
            self._note(f"its folder cannot be used ({error.strerror or error})")
            yield True
            return
        try:
            yield mine
        finally:
            granted.__exit__(None, None, None)

    @contextlib.contextmanager
    def _locked(self, purpose: str, patience: float) -> Iterator[bool]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Of its own per purpose: whoever measures also writes.
        handle = os.open(self.path.with_suffix(f".{purpose}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield _flock(handle, patience)
        finally:
            os.close(handle)  # which unlocks

    def _with_unsaved(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        merged = {**records, **self._unsaved}
        return {key: record for key, record in merged.items() if record is not None}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            self._note(f"it cannot be read ({error})")
            return {}
        flaw, records = self._checked(text)
        if flaw:
            self._note(f"it was ignored: {flaw}")
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
        if hasattr(os, "geteuid") and self.path.stat().st_uid not in (os.geteuid(), 0):
            return "it belongs to another user", {}
        return "", records

    def _write(self, records: dict[str, dict[str, Any]]) -> None:
        content = {
            "schema": SCHEMA,
            "environment": self._environment,
            "records": records,
            "sha256": _digest(records),
        }
        # We hold the lock: temporary files are of processes that were killed.
        for left in self.path.parent.glob(f".{self.path.stem}-*"):
            with contextlib.suppress(OSError):
                left.unlink()
        handle, temporary = tempfile.mkstemp(prefix=f".{self.path.stem}-", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1, sort_keys=True)
            Path(temporary).replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        self._records = records
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _note(self, text: str) -> None:
        note = f"{self.path}: {text}"
        if note not in self.notes:
            self.notes.append(note)
            logger.info("decisions are not kept or not used: %s", note)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no home at all
        return Path(tempfile.gettempdir()) / "qwen-mfa-no-home"


def _digest(records: object) -> str:
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


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
