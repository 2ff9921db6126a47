"""Tells a crash from a death by a signal from outside, for whoever comes after.

A process that validates or measures leaves a mark: a file that goes away when it is done. A process
that dies leaves it behind. Whether the kernel is to blame shows in the mark. Python's
``faulthandler`` writes into it when the process ends by a signal of its own making (a bad address,
an abort); it writes nothing when somebody ends it (``kill``, ``timeout``, a closed terminal, no
memory left). Only the former counts against the kernel, and so does a machine that went down.

Where the program uses ``faulthandler`` itself, it keeps it, and its crashes look like ends from
outside. After either, the validation runs in a child process again, whose parent sees how it ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_mfa import files, forks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_mfa.selection.store import Store

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How the last process ended that did the same.

    Attributes:
        happened: Whether it died there at all.
        counts: Whether by a crash, or with the machine.

    """

    happened: bool = False
    counts: bool = False


@contextlib.contextmanager
def marked(store: Store, key: str) -> Iterator[Death]:
    """Leave a mark for ``key`` during the context, and tell what mark there was."""
    name = store.name_of("attempt", key)
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(store.folder())
            death = _death(name, place)
            if death.happened:
                os.unlink(name, dir_fd=place)
            handle = stack.enter_context(forks.kept_from_children(files.create(name, place)))
            stack.callback(_remove, name, place)
            os.write(handle, f"{_boot()}\n".encode())
            # A machine that goes down must not take it along.
            os.fsync(handle)
        except OSError as error:
            store.note(f"no mark can be left ({error.strerror or error})")
            yield Death()
            return
        with _written_to(handle):
            yield death


def _death(name: str, place: int) -> Death:
    try:
        boot, _, trace = files.read(name, _MAX_BYTES, folder=place).decode().partition("\n")
    except FileNotFoundError:
        return Death()
    except (OSError, UnicodeDecodeError):  # none of ours
        return Death(happened=True)
    return Death(happened=True, counts=bool(trace.strip()) or boot not in {"", _boot()})


@contextlib.contextmanager
def _written_to(handle: int) -> Iterator[None]:
    """Have a crash within the context written to ``handle``, unless the program has its own way."""
    if faulthandler.is_enabled():
        yield
        return
    faulthandler.enable(handle, all_threads=False)
    # How Swift ends a process on arm64. Not among those that `enable` knows.
    faulthandler.register(signal.SIGTRAP, handle, all_threads=False, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGTRAP)
        faulthandler.disable()


def _remove(name: str, place: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=place)


def _boot() -> str:
    """Return what identifies the machine's present run; empty where nothing does."""
    if sys.platform == "darwin":
        return _sysctl("kern.bootsessionuuid")
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _sysctl(name: str) -> str:
    import ctypes  # noqa: PLC0415 - rarely needed

    text = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(text))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), text, ctypes.byref(size), None, 0)
    return "" if failed else text.value.decode("ascii", "replace")
