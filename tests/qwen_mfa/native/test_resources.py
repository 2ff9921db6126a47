"""Native handles are released exactly once, and calls do not accumulate memory."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from typing import Any

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.native import library
from tests.qwen_mfa.attention.problems import Shape, draw

pytestmark = pytest.mark.cpu


class Counting:
    """A library handle that counts what it creates and destroys."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.created = self.destroyed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def mfa_destroy_context(self, handle: Any) -> None:
        self.destroyed += 1
        self._lib.mfa_destroy_context(handle)


def context(counting: Counting) -> library.Context:
    found = library.load()
    handle = found.new_context()
    handle._release.detach()
    return library.Context(counting, handle.handle)


def test_a_context_is_destroyed_once() -> None:
    counting = Counting(library.load().lib)
    one = context(counting)
    one.close()
    one.close()
    del one
    gc.collect()
    assert counting.destroyed == 1


def test_a_dropped_context_is_destroyed() -> None:
    counting = Counting(library.load().lib)

    def fail() -> None:
        _kept = context(counting)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    gc.collect()
    assert counting.destroyed == 1


# A daemon thread that is nearly always in the engine, and never in MLX: what MLX does to such a
# thread at exit is its own (docs/reliability.md).
ENDING = """
import threading, time
import mlx.core as mx
from qwen_mfa.kernels import cpu
from qwen_mfa.kernels.base import Call
from qwen_mfa.native import library
from qwen_mfa.problem import describe

class Recording:
    def __getattr__(self, name):
        return getattr(real, name)
    def mfa_portable_attention(self, *arguments):
        seen.append(arguments)
        return real.mfa_portable_attention(*arguments)

seen, real = [], library.load().lib
object.__setattr__(library.load(), "lib", Recording())
q = mx.random.normal((1, 4, 300, 64))
mx.eval(q)
out = cpu.run(Call(q=q, k=q, v=q, scale=0.125))

def attend(function, arguments):
    while True:
        function(*arguments)

arguments = (real.mfa_portable_attention, seen[0])
threading.Thread(target=attend, args=arguments, daemon=True).start()
time.sleep(0.02)
"""


def test_exit_destroys_nothing_that_a_daemon_thread_uses() -> None:
    """It ended by SIGSEGV in most of the runs, while contexts were destroyed at exit."""
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


TORN = """
import threading, time
import mlx.core as mx
import qwen_mfa
q = mx.random.normal((1, 4, 100, 64))
mx.eval(q)
def attend():
    while True:
        qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.125)
qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.125)
threading.Thread(target=attend, daemon=True).start()
time.sleep(0.05)
"""


def test_exit_tears_no_daemon_thread_out_of_mlx() -> None:
    """MLX calls us from C++, which did not survive it: SIGSEGV in a quarter of the runs."""
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", TORN], capture_output=True, check=False)
        # What the thread does in MLX outside of our calls aborts, with or without us.
        by_mlx = b"terminate called without an active exception" in done.stderr
        assert by_mlx or (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc/self/maps")
def test_a_library_stays_in_memory_when_nothing_refers_to_it() -> None:
    code = """
import gc
from qwen_mfa.native import library
path = str(library.load().path)
library.outcome.forget()
library.ffi.cache_clear()
gc.collect()
with open("/proc/self/maps") as maps:
    print(path in maps.read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_thousands_of_calls_do_not_grow_memory() -> None:
    q, k, v = draw(Shape(hq=4, hkv=4, sq=64, skv=64))
    mask = mx.random.uniform(shape=(64, 64)) < 0.8

    def calls(count: int) -> int:
        for _ in range(count):
            mx.eval(qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.1, mask=mask))
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = calls(500)
    after = calls(4000)
    # One leaked result a call would be 65 KiB * 4000 = 256 MiB, one leaked struct 1.5 MiB.
    assert after - before < 1024


BESIDE = """
import os
import mlx.core as mx
from qwen_mfa.kernels import cpu
from qwen_mfa.kernels.base import Call
from qwen_mfa.problem import describe

q = mx.random.normal((1, 4, 256, 64))
mx.eval(q)
call = Call(q=q, k=q, v=q, scale=0.125)

def masks():
    tasks = os.listdir("/proc/self/task")
    return {int(task): os.sched_getaffinity(int(task)) for task in tasks}

allowed = os.sched_getaffinity(0)
before = masks()
expected = cpu.run(call)
helpers = {task: mask for task, mask in masks().items() if task not in before}
assert helpers, "no helper was started"
for mask in helpers.values():
    assert mask < allowed and len(mask) == len(allowed) - 1, (mask, allowed)
os.sched_setaffinity(0, {min(allowed)})  # the caller alone: no helper takes part any more
assert mx.array_equal(cpu.run(call), expected)
os.sched_setaffinity(0, allowed)
assert mx.array_equal(cpu.run(call), expected)
"""


def test_helpers_keep_off_their_caller_s_cpu() -> None:
    """Woken on the caller's CPU they would wait for it, while others idle."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU: there are no helpers")
    subprocess.run([sys.executable, "-c", BESIDE], check=True)
