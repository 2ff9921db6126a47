"""Opens what others may have put there: no link is followed, nothing is waited for or endless.

A name in a shared folder can be a link to somebody's file, a FIFO that never answers, a device that
never ends, or a file of another user. What counts is the file that was opened, not the name: it is
checked after opening. All errors are `OSError`, and ``strerror`` says what is wrong.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WRITABLE_BY_OTHERS = 0o022
_NOT_REGULAR = "it is not a regular file"


class _UnusableError(OSError):
    def __init__(self, reason: str, path: Path | str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def read(path: Path | str, most: int, *, folder: int | None = None) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Args:
        path: The file; links are followed. With ``folder``, a plain name in it.
        most: In bytes.
        folder: Descriptor of a folder, as of `private_folder`: then no link is followed, and the
            file must be ours or root's, and writable by nobody else.

    Raises:
        OSError: There is none, or it is something else.

    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    if folder is not None:
        flags |= os.O_NOFOLLOW
    handle = os.open(path, flags, dir_fd=folder)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _UnusableError(_NOT_REGULAR, path)
        if folder is not None:
            _check_owner(found, path)
        stream = os.fdopen(handle, "rb", closefd=False)
        content = b"" if found.st_size > most else stream.read(most + 1)
        if found.st_size > most or len(content) > most:
            msg = f"it is larger than {most >> 20} MiB"
            raise _UnusableError(msg, path)
        return content
    finally:
        os.close(handle)


def private_folder(path: Path, *, ours: bool = False) -> int:
    """Return a descriptor of a folder that only we, or root, can write to; make it if need be.

    Args:
        path: The folder. Its last component must not be a link.
        ours: It is of this package alone, so that its mode may be corrected.

    Raises:
        OSError: It cannot be made, or others own it or can write to it.

    """
    try:
        handle = _open_folder(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may have made it since.
        path.mkdir(mode=0o700, exist_ok=True)
        handle = _open_folder(path)
    try:
        found = os.fstat(handle)
        if ours and found.st_uid == os.geteuid() and found.st_mode & _WRITABLE_BY_OTHERS:
            os.fchmod(handle, 0o700)  # made with a lax umask by an earlier version
            found = os.fstat(handle)
        _check_owner(found, path, "its folder")
    except BaseException:
        os.close(handle)
        raise
    return handle


def create(name: str, folder: int) -> int:
    """Return a descriptor for writing a new file in ``folder``. It must not exist, as a link too.

    Raises:
        OSError: It exists, or cannot be made.

    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.open(name, flags, 0o600, dir_fd=folder)


def open_lock(name: str, folder: int) -> int:
    """Return a descriptor of a regular file of ours in ``folder``, made if need be.

    Raises:
        OSError: Something else has that name.

    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    handle = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        _check_lock(os.fstat(handle), name)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_lock(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        msg = "its lock is not a regular file"
        raise _UnusableError(msg, name)
    _check_owner(found, name, "its lock")


def _open_folder(path: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            msg = "its folder is a symbolic link, which is not followed"
            raise _UnusableError(msg, path) from error
        raise


def _check_owner(found: os.stat_result, path: Path | str, what: str = "it") -> None:
    if found.st_uid not in (os.geteuid(), 0):
        msg = f"{what} belongs to another user"
        raise _UnusableError(msg, path)
    if found.st_mode & _WRITABLE_BY_OTHERS:
        msg = f"{what} can be written to by others: chmod go-w"
        raise _UnusableError(msg, path)
