"""Runs a kernel's first validation in a child process: native code and drivers can end a process.

A crash of the child is a result like any other; that somebody ended it is none. It is given as
much time as `limit` says, and never outlives its parent: see `qwen_mfa.validation.inside`.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from qwen_mfa import forks, settings
from qwen_mfa.kernels import cpu
from qwen_mfa.validation.validate import ValidationResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_mfa.validation.variants import Variant

LIMIT = 20.0  # seconds; a validation takes about one, most of it Python's start
# Metal's: a cold Mac loads MLX and AppKit and compiles several shaders, where `xcrun` has to do it
# with two tools of up to 120 s each.
METAL_LIMIT = 300.0
# The child's own alarm comes later: the parent, if it still exists, has more to say.
GRACE = 5.0

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qwen_mfa.validation.inside import main; main(*sys.argv[2:])"
)
_CRASHES = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"}
_ENDLESS = {"SIGALRM", "SIGXCPU"}
_KEPT = 1 << 16  # bytes of what the child says

logger = logging.getLogger("qwen_mfa")


@dataclass(kw_only=True, slots=True)
class _Ended:
    """What came of the child: ``status`` is ``None`` if its time was up."""

    status: int | None
    answer: bytes
    errors: bytes


def limit(kernel_name: str) -> float:
    """Return the seconds that the validation of a kernel may take."""
    return METAL_LIMIT if kernel_name.startswith("metal") else LIMIT


def validate_in_child(kernel_name: str, variant: Variant, device: str) -> ValidationResult:
    """Validate a kernel on MLX's device ``"cpu"`` or ``"gpu"`` in a child process. Never raises."""
    start = time.perf_counter()
    seconds = limit(kernel_name)
    logger.info("validating kernel %s in a child process, which has %g s", kernel_name, seconds)
    try:
        ended = _ended(kernel_name, variant, device, seconds)
    except OSError as error:
        result = _failed(f"the child process for its validation could not be started ({error})")
        result = replace(result, outside=True)
    else:
        result = _result(ended, seconds)
    return replace(result, seconds=time.perf_counter() - start)


def _ended(kernel_name: str, variant: Variant, device: str, seconds: float) -> _Ended:
    """Run the child to its end, or to ours."""
    # Each process measures which instructions it takes: those of this one are validated.
    isa = {settings.ISA: cpu.instructions(variant.dtype)} if kernel_name == cpu.name else {}
    command = [sys.executable or "python3", "-c", _CODE, json.dumps(sys.path)]
    # The answer has a pipe of its own: libraries print to standard output, and not always lines.
    # The other pipe never carries anything: that it ends tells the child of our end.
    with ExitStack() as stack:
        pipes = [*os.pipe(), *os.pipe()]
        answer, answer_end, life_end, _life = (
            stack.enter_context(forks.kept_from_children(handle)) for handle in pipes
        )
        guard = [str(answer_end), str(life_end), str(os.getpid()), str(seconds + GRACE)]
        child = subprocess.Popen(
            [*command, *guard, kernel_name, json.dumps(asdict(variant)), device],
            env={**os.environ, **isa},  # noqa: TID251 - handed on
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(answer_end, life_end),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        stack.callback(_end, child)
        # Ours is no writer: the pipe has to end with the child.
        forks.hollow(answer_end)
        found, errors = _read(child, answer, time.monotonic() + seconds)
        with suppress(subprocess.TimeoutExpired):
            # It has closed its end of the pipe, or its time is up.
            child.wait(0.0 if found is None else GRACE)
        return _Ended(status=child.returncode, answer=found or b"", errors=errors)


def _read(child: subprocess.Popen[bytes], answer: int, end: float) -> tuple[bytes | None, bytes]:
    """Return the whole answer, or ``None`` if it did not end in time, and the last errors."""
    assert child.stderr is not None  # noqa: S101 - it is a pipe
    said = {answer: b"", child.stderr.fileno(): b""}
    errors = child.stderr.fileno()
    for handle, data in _chunks(set(said), end):
        said[handle] = (said[handle] + data)[-_KEPT:]
        # What it started may hold the other pipe open for longer.
        if handle == answer and not data:
            return said[answer], said[errors]
    return None, said[errors]


def _chunks(handles: set[int], end: float) -> Iterator[tuple[int, bytes]]:
    with selectors.DefaultSelector() as selector:
        for handle in handles:
            selector.register(handle, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, _KEPT)
                if not data:
                    selector.unregister(key.fd)
                yield key.fd, data


def _result(ended: _Ended, seconds: float) -> ValidationResult:
    """Return what the child found, or what its end says."""
    if ended.status is None:
        return _failed(f"its validation gave no answer within {seconds:g} s")
    if ended.status < 0:
        return _of_signal(-ended.status)
    with suppress(ValueError, TypeError):
        return ValidationResult(**json.loads(ended.answer))
    lines = ended.errors.decode(errors="replace").strip().splitlines() or ["without a message"]
    return _failed(
        f"the process of its validation failed (exit status {ended.status}: {lines[-1]})"
    )


def _of_signal(number: int) -> ValidationResult:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name in _ENDLESS:
        return _failed(f"its validation gave no answer, and was ended by {name}")
    if name in _CRASHES:
        reason = f"it ended the process of its validation (signal {number}, {name})"
        return ValidationResult(ok=False, reason=reason, died=True)
    # Nothing that a kernel does: somebody's kill, no memory left, a closed session.
    result = _failed(
        f"the process of its validation was ended from outside (signal {number}, {name})"
    )
    return replace(result, outside=True)


def _failed(reason: str) -> ValidationResult:
    return ValidationResult(ok=False, reason=reason, lasting=False)


def _end(child: subprocess.Popen[bytes]) -> None:
    # With what it started: compilers, on a Mac. Not waited for: they may hold its pipes.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stderr is not None:
        child.stderr.close()
