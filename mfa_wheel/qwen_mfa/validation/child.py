"""Runs a kernel's first proof in a child process: native code and drivers can end a process.

The child's death is a verdict like any other. It is given as much time as `LIMIT` says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from qwen_mfa.validation.validate import Verdict

if TYPE_CHECKING:
    from qwen_mfa.validation.variants import Variant

LIMIT = 20.0  # seconds; a proof takes about one, most of it Python's start
_MARK = "qwen-mfa verdict: "  # libraries print to standard output too
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qwen_mfa.validation.child import main; main(*sys.argv[2:])"
)


def prove_in_child(kernel_name: str, variant: Variant, device: str) -> Verdict:
    """Prove a kernel on MLX's device ``"cpu"`` or ``"gpu"`` in a child process. Never raises."""
    start = time.perf_counter()
    command = [sys.executable or "python3", "-c", _CODE, json.dumps(sys.path)]
    try:
        child = subprocess.Popen(
            [*command, kernel_name, json.dumps(asdict(variant)), device],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
    except OSError as error:
        return _failed(
            f"the child process for its proof could not be started ({error})", start, lasting=False
        )
    try:
        output, errors = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        _end(child)
        return _failed(f"its proof gave no answer within {LIMIT:g} s", start, lasting=False)
    except BaseException:
        _end(child)
        raise
    return _verdict(child.returncode, output, errors, start)


def main(kernel_name: str, variant: str, device: str) -> None:
    """Prove, in the child, and print the verdict."""
    import mlx.core as mx  # noqa: PLC0415 - the parent has no need of it here

    from qwen_mfa.selection.candidates import named  # noqa: PLC0415 - which imports this module
    from qwen_mfa.validation.validate import prove  # noqa: PLC0415
    from qwen_mfa.validation.variants import Variant  # noqa: PLC0415

    _no_core_dump()
    mx.set_default_device(mx.Device(mx.DeviceType.cpu if device == "cpu" else mx.DeviceType.gpu))
    kernel = named(kernel_name)
    if kernel is None:
        sys.exit(f"there is no kernel {kernel_name}")
    verdict = prove(kernel, Variant(**json.loads(variant)))
    sys.stdout.write(_MARK + json.dumps(asdict(verdict)) + "\n")
    sys.stdout.flush()
    # Without Python's and the library's own clean-up, which a bad library may not survive.
    os._exit(0)


def _verdict(status: int, output: str, errors: str, start: float) -> Verdict:
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            try:
                found = json.loads(line.removeprefix(_MARK))
                return Verdict(**{**found, "seconds": time.perf_counter() - start})
            except (ValueError, TypeError):
                break
    if status < 0:
        try:
            how = f"signal {-status}, {signal.Signals(-status).name}"
        except ValueError:
            how = f"signal {-status}"
        return _failed(f"it ended the process of its proof ({how})", start, died=True)
    last = (errors.strip().splitlines() or ["without a message"])[-1]
    return _failed(
        f"the process of its proof failed (exit status {status}: {last})", start, lasting=False
    )


def _failed(reason: str, start: float, *, died: bool = False, lasting: bool = True) -> Verdict:
    seconds = time.perf_counter() - start
    return Verdict(ok=False, reason=reason, seconds=seconds, died=died, lasting=lasting)


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def _no_core_dump() -> None:
    try:
        import resource  # noqa: PLC0415 - not on every system

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        return
