"""What goes through everything: the package, the built library, and its kernels, executed.

Run over the pinned library by `build_tools simulate` and over the miniature by the tests
(tests/build_tools/native/test_simulate.py), in a process whose environment names the library and
puts the stand-ins in place. The stand-in of the library (tests/standins/metal/umfa.c) is stricter
than the real one; here it is shown which mistakes the real one's numbers, its device or the memory
checker tell, and which it takes as they come.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa.kernels import metal
from qwen_mfa.kernels.metal import execute
from tests.qwen_mfa.kernels.metal import test_misuse as misuse
from tests.qwen_mfa.kernels.metal.conftest import StandinMac
from tests.qwen_mfa.kernels.metal.test_misuse import ERROR, WRONG
from tests.qwen_mfa.qwen_image import test_golden as vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.qwen_mfa.qwen_image.conftest import Golden

# The fixtures of what is used here.
pytest_plugins = ("tests.qwen_mfa.qwen_image.conftest",)
alter = misuse.alter

NOTHING: set[str] = set()
# What shows each mistake: one of these.
CAUGHT = {
    "second commit": {"a command buffer was committed twice"},
    "not waiting": {"a committed command buffer was never waited for"},
    "no autorelease pool": {"a command buffer was made without an autorelease pool"},
    # Nothing is wrong with the first call of a length, whatever a comment of upstream's says.
    "no throw-away run": NOTHING,
    "no strides": {WRONG},
    "16-bit output, with the check": {ERROR},
    "an unknown precision": {WRONG},  # it is FP32, and these inputs are not
    "a precision that is too wide": {WRONG},
    "low intermediates for FP16": {WRONG},
    "a bool mask": {WRONG, ERROR},
    "a mask after the scale": {WRONG},
    "no shift of large biases": {WRONG},
    "rows without keys forgotten": {WRONG},
    "a wrong offset": {WRONG},
    "buffers let go too early": {"a buffer was released while the GPU used it"},
    "mfa_attention_forward": {ERROR},
}
# What ends the process, with what it says on its standard error, if anything.
FATAL = {
    "an output overrun, into a guard page": "out of bounds: write of buffer 3",
    "a CPU pointer for a buffer": "",
    "head_dim 0": "",
}
# What lies at the pointer decides: it ends the process, or the library refuses what it reads.
UNDEFINED = {"a CPU pointer for a buffer"}
# Where it is the library that does not do it: our repair of it, and the same without our check.
OTHERWISE = {"the encoder defect", "16-bit output, without the check"}


@pytest.fixture
def mac() -> Iterator[StandinMac]:
    """The machine that this process was made to see."""
    assert os.environ["QWEN_MFA_METAL_STANDIN"]
    execute.the_engine.forget()
    standin = StandinMac({})
    standin.misuses()
    yield standin
    assert standin.misuses() == set()


def test_every_mistake_is_tried() -> None:
    assert set(CAUGHT) | set(FATAL) | OTHERWISE == set(misuse.MISTAKES) | set(misuse.FATAL)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_mistake_is_caught(mac: StandinMac, alter: Callable[..., None], name: str) -> None:
    assert misuse.outcome(mac, misuse.probe(name)) == set(), "all is well before"
    misuse.make(name, alter)
    found = misuse.outcome(mac, misuse.probe(name))
    assert found & CAUGHT[name] if CAUGHT[name] else found == set()


def test_an_output_that_is_used_again_is_caught(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    misuse.test_an_output_that_is_used_again_is_caught(mac, monkeypatch)


def test_a_commit_after_an_error_code_is_caught(
    mac: StandinMac, alter: Callable[..., None]
) -> None:
    """The library refuses a context that is not there, and has encoded nothing."""
    nobody = "SimpleNamespace(lib=engine.lib, context=SimpleNamespace(handle=ffi().NULL))"
    alter(
        "execute",
        ("_check(engine, _encode(engine, ", f"(_encode({nobody}, "),
        ("from typing import", "from types import SimpleNamespace\nfrom typing import"),
    )
    found = misuse.outcome(mac, misuse.probe(""))
    assert {"an empty command buffer was committed", WRONG} <= found


def test_a_missing_lock_is_caught(mac: StandinMac, alter: Callable[..., None]) -> None:
    call = misuse.probe("mask")
    mx.eval(call.arrays())
    metal.accurate.run(call)  # later calls are warm: each encodes once
    kept = execute.the_engine()
    first, encoded = "        engine = the_engine()", "_encode(engine, objc, commands, work))"
    alter(
        "execute",
        (f"    with _lock:\n{first}", "    if True:\n        engine = kept"),
        (encoded, f"{encoded}\n        both_have_encoded.wait(60)"),
    )
    vars(execute).update(both_have_encoded=threading.Barrier(2), kept=kept)

    def work() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            metal.accurate.run(call)

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(work) for _ in range(2)]:
            each.result()
    assert "two calls of the library were under way" in mac.misuses()


@pytest.mark.parametrize("name", FATAL)
def test_what_ends_a_process_on_a_mac_ends_it_here(name: str) -> None:
    _, setup = misuse.FATAL[name]
    done = subprocess.run(
        [sys.executable, "-c", misuse.CHILD.format(setup=setup)],
        env=os.environ | {"SOFTWARE_METAL_CHECK": "1"}, check=False, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode < 0 or (name in UNDEFINED and "NativeError" in done.stderr)
    assert FATAL[name] in done.stderr
    assert "survived" not in done.stdout


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_golden_vectors(mac: StandinMac, golden: Golden, dtype: str, masked: bool) -> None:
    kind, allowed = {
        "float32": (mx.float32, vectors.FLOAT32), "bfloat16": (mx.bfloat16, vectors.BFLOAT16)
    }[dtype]  # fmt: skip
    block = vectors.build_block(golden, kind)
    waits = mac.library.standin_waits()
    assert max(vectors.attention_errors(golden, block, masked)) <= allowed
    if masked:
        assert max(vectors.block_errors(golden, block)) <= allowed
    assert mac.library.standin_waits() > waits
