"""The child process of a validation: answers through a pipe, and never outlives its parent.

Three things end it, whatever the library does: the system when its parent's thread ends (Linux), a
thread that waits for the end of a pipe that the parent holds (elsewhere the only one of these), and
an alarm, which needs neither. None needs the library's cooperation, and the first and last not even
Python's: a library may hang with the interpreter's lock held.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from dataclasses import asdict

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main(
    answer: str, life: str, parent: str, seconds: str, kernel_name: str, variant: str, device: str
) -> None:
    """Validate and answer.

    Args:
        answer: Descriptor of the pipe that takes the answer, a JSON object.
        life: Descriptor of the pipe whose end tells of the parent's.
        parent: The parent's process number.
        seconds: When to give up.
        kernel_name: What to validate.
        variant: For which variant, as JSON.
        device: On MLX's device ``"cpu"`` or ``"gpu"``.

    """
    guard(int(life), int(parent), float(seconds))
    # Not for what the library starts.
    os.set_inheritable(int(answer), False)

    import mlx.core as mx  # noqa: PLC0415 - the guard comes first

    from qwen_mfa.kernels.registry import named  # noqa: PLC0415
    from qwen_mfa.validation.validate import validate  # noqa: PLC0415
    from qwen_mfa.validation.variants import Variant  # noqa: PLC0415

    mx.set_default_device(mx.Device(mx.DeviceType.cpu if device == "cpu" else mx.DeviceType.gpu))
    kernel = named(kernel_name)
    if kernel is None:
        sys.exit(f"there is no kernel {kernel_name}")
    result = validate(kernel, Variant(**json.loads(variant)))
    with os.fdopen(int(answer), "w", encoding="utf-8") as stream:
        json.dump(asdict(result), stream)
        stream.flush()
        # Without Python's and the library's own clean-up, which a bad library may not survive.
        os._exit(0)


def guard(life: int, parent: int, seconds: float) -> None:
    """Have this process end with its parent, and after ``seconds`` in any case; no core dumps."""
    os.set_inheritable(life, False)
    # A parent hands down what it ignores and blocks.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)
    threading.Thread(target=_wait_for_end, args=(life,), daemon=True).start()
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - for this alone

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we were guarded
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on every system

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait_for_end(life: int) -> None:
    # Nothing is ever written to it.
    with contextlib.suppress(OSError):
        os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)
