"""One kernel on one problem in a process of its own: its time, its peak memory, its result.

A process of its own because only there does peak memory belong to one kernel, and because a
native library that crashes must not take the report with it. Run as ``python -m
qwen_mfa.cli.sample`` with the request as JSON on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import mlx.core as mx

import qwen_mfa
from qwen_mfa.cli import device
from qwen_mfa.kernels import mlx, registry
from qwen_mfa.kernels.base import Call

HEADS, HEAD_DIM = 24, 128
TEXT_TOKENS, PADDED = 100, 37  # the padding is the end of the text, which comes first
HIDDEN = slice(TEXT_TOKENS - PADDED, TEXT_TOKENS)  # keys, by a padding mask
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
TIMEOUT = 600.0

# glibc otherwise keeps freed blocks of tens of MiB and would serve the measured call from them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run.

    Attributes:
        kernel: Name of a kernel, or ``"qwen-mfa"`` for our operation as it is.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        masked: With the text-padding mask.
        image_tokens: Image tokens, beside the text's.
        output: File for the result (safetensors).

    """

    kernel: str
    dtype: str
    masked: bool
    image_tokens: int
    output: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one kernel did: best time in seconds, growth of memory in bytes (`device.growth`)."""

    seconds: float
    peak: int | None
    failure: str | None = None


def draw(dtype: str, *, masked: bool, image_tokens: int) -> Call:
    """Draw joint text+image inputs, laid out as hosts have them: BSHD memory seen as BHSD."""
    tokens = TEXT_TOKENS + image_tokens
    keys = mx.random.split(mx.random.key(7), 3)
    shape = (1, tokens, HEADS, HEAD_DIM)
    q, k, v = (
        mx.random.normal(shape, key=key).astype(DTYPES[dtype]).transpose(0, 2, 1, 3) for key in keys
    )
    position = mx.arange(tokens)
    hidden = (position >= HIDDEN.start) & (position < HIDDEN.stop)
    mask = mx.logical_not(hidden)[None, None, None, :] if masked else None
    call = Call(q=q, k=k, v=v, scale=HEAD_DIM**-0.5, mask=mask)
    mx.eval(call.arrays())
    return call


def take(request: Request) -> Sample:
    """Run ``request`` in this process."""
    call = draw(request.dtype, masked=request.masked, image_tokens=request.image_tokens)
    # Opens the library and starts its threads, so that neither counts.
    _run(request.kernel, draw(request.dtype, masked=request.masked, image_tokens=1))
    start = time.perf_counter()
    out, peak = device.growth(lambda: _run(request.kernel, call))
    first = time.perf_counter() - start
    # What takes seconds is not hurt by a cold start; what takes milliseconds is.
    rounds = [first] if first > 1 else [_timed(request.kernel, call) for _ in range(3)]
    mx.save_safetensors(request.output, {"out": out})
    return Sample(seconds=min(rounds), peak=peak)


def take_in_child(request: Request) -> Sample:
    """Run ``request`` in a child process; a crash or a time-out is a failed sample."""
    command = [sys.executable, "-m", "qwen_mfa.cli.sample"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(request)),
            env={**os.environ, **MALLOC},  # noqa: TID251 - handed on
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
        return Sample(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        failure = f"no answer within {TIMEOUT:g} s"
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"signal {-error.returncode}" if error.returncode < 0 else f"exit {error.returncode}"
        failure = f"{how}: {last}"
    return Sample(seconds=float("inf"), peak=None, failure=failure)


def _run(kernel: str, call: Call) -> mx.array:
    native = registry.named(kernel)
    if kernel == mlx.name:
        out = mlx.run(call)
    elif native is not None:
        # Itself, whatever dispatch thinks of it: the self-test is there to show its errors.
        out = native.run(call)
    else:
        out = qwen_mfa.scaled_dot_product_attention(
            call.q, call.k, call.v, scale=call.scale, mask=call.mask
        )
    mx.eval(out)
    return out


def _timed(kernel: str, call: Call) -> float:
    start = time.perf_counter()
    _run(kernel, call)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(asdict(take(Request(**json.load(sys.stdin))))))
