"""Each mistake that a caller of the Metal library can make is caught by the stand-ins.

The mistakes are made in the package's own code: a line of it is altered, run, and put back.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest

from qwen_mfa.errors import MetalError, QwenMfaError
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.base import Call
from qwen_mfa.kernels.metal import execute
from qwen_mfa.problem import describe
from tests.qwen_mfa.attention.problems import Shape, assert_exact, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = pytest.mark.cpu

WRONG = "wrong numbers"
ERROR = "an error"


@pytest.fixture
def alter(mac: StandinMac) -> Iterator[Callable[..., None]]:
    """Replace text in a module of the kernel, in place, until the test ends."""
    del mac
    originals = {}

    def change(name: str, *changes: tuple[str, str]) -> None:
        module = importlib.import_module(f"qwen_mfa.kernels.metal.{name}")
        source = originals.setdefault(module, inspect.getsource(module))
        for old, new in changes:
            assert source.count(old) == 1, f"{name} no longer holds {old!r} once"
            source = source.replace(old, new)
        exec(compile(source, module.__file__ or name, "exec"), module.__dict__)  # noqa: S102

    yield change
    for module, source in originals.items():
        exec(compile(source, module.__file__ or "", "exec"), module.__dict__)  # noqa: S102


def outcome(mac: StandinMac, call: Call) -> set[str]:
    """Run ``call`` and return everything that shows that something is wrong."""
    problem = describe(call.q, call.k, call.v, call.mask)
    assert problem is not None
    mx.eval(call.arrays())
    found = set()
    try:
        out = metal.accurate.run(call)
        assert_exact(out, call)
    except AssertionError:
        found.add(WRONG)
    except (QwenMfaError, RuntimeError):
        found.add(ERROR)
    return found | mac.misuses()


SIZES = Shape(b=2, sq=9, skv=14, d=8, dv=8)
SIZES_OF_OUT = (SIZES.b, SIZES.hq, SIZES.sq, SIZES.dv)
NO_SIZE_CHECK = ("        _check_sizes(objc, work)\n", "")
POOL = "    with objc.autorelease_pool():\n        _check_sizes"
MISTAKES = {
    "second commit": (
        [("execute", ("commands.commit()", "commands.commit(); commands.commit()"))],
        {"a command buffer was committed twice", ERROR},
    ),
    "not waiting": (
        [("execute", ("        commands.waitUntilCompleted()\n", ""), ("!= _COMPLETED", "== 99"))],
        {"a committed command buffer was never waited for", WRONG},
    ),
    "no autorelease pool": (
        [("execute", (POOL, POOL.replace("objc.autorelease_pool()", "forks.lock()")))],
        {
            "a command buffer was made without an autorelease pool",
            "a call without an autorelease pool",
        },
    ),
    "no throw-away run": ([("execute", ("if key not in engine.warm", "if not key"))], {WRONG}),
    "no strides": (
        [("execute", ('c.new("int64_t[4]", strides)', "c.NULL"))],
        {"no strides: the heads of K and V are found with Sq", WRONG},
    ),
    "16-bit output, with the check": (
        [("execute", ("fresh(shape, mx.float32", "fresh(shape, mx.float16"))],
        {ERROR},
    ),
    "16-bit output, without the check": (
        [("execute", ("fresh(shape, mx.float32", "fresh(shape, mx.float16"), NO_SIZE_CHECK)],
        {"the FP32 output does not fit its buffer", WRONG},
    ),
    "an unknown precision": (
        [("limits", ('"bfloat16": "bf16"', '"bfloat16": "brain"'))],
        {"an unknown precision, which is taken for fp32", "an input is over-read", WRONG},
    ),
    "a precision that is too wide": (
        [("limits", ('"float16": "fp16"', '"float16": "fp32"'))],
        {"an input is over-read", WRONG},
    ),
    "low intermediates for FP16": (
        [("execute", ("work.intermediate.encode()", 'b"fp16"'))],
        {"FP16 scores"},
    ),
    "a bool mask": (
        [("execute", ("_SCALAR_FP32 = 0, 2, 3", "_SCALAR_FP32 = 0, 1, 0"))],
        {"a bool mask, which becomes -inf under fast math", WRONG},
    ),
    "a mask after the scale": ([("masks", ("logits / call.scale", "logits"))], {WRONG}),
    "no shift of large biases": (
        [("masks", ("mx.where(empty, mx.array(0.0), best)", "mx.array(0.0)"))],
        {WRONG},
    ),
    "rows without keys forgotten": ([("execute", ("if prepared is not None:", "if False:"))],
                                    {WRONG}),
    "a wrong offset": ([("execute", ("found.buffer), found.offset, c", "found.buffer), 0, c"))],
                       {WRONG}),
    "buffers let go too early": (
        [("dlpack", ("        capsule=capsule,\n", "        capsule=None,\n"))],
        {"a buffer was released while the GPU used it", "a released buffer was encoded"},
    ),
    "mfa_attention_forward": (
        [("execute", ("engine.lib.lib.mfa_attention_encode_mtl", "_forward(engine)")),
         ("execute", ("def _encode", ("def _forward(engine):\n    null = ffi().NULL\n"
          "    engine.lib.lib.mfa_attention_forward(null, null, null, null, null, 1, 1, 1, 1, 1, 1."
          ", False, 0, 2, 2, False, False, False, False, null, 0, null, null, 0, 0, 0)\n"
          "    return lambda *_: 5\n\n\ndef _encode")))],
        {"mfa_attention_forward was called", ERROR},
    ),
}  # fmt: skip


# Of the call that shows a mistake, where it is not FP32.
DTYPES = {
    "an unknown precision": mx.bfloat16,
    "a precision that is too wide": mx.float16,
    "low intermediates for FP16": mx.float16,
}


def probe(name: str) -> Call:
    """Return the call that shows a mistake."""
    q, k, v = draw(SIZES, DTYPES.get(name, mx.float32))
    if "intermediates" in name:
        # All scores are about 1024, where FP16 has nothing between whole numbers.
        q[..., 0], k[..., 0] = 32, 32
    mask = None
    if "mask" in name or "rows" in name or "biases" in name:
        bias = np.random.default_rng(1).standard_normal((SIZES.sq, SIZES.skv)).astype(np.float32)
        bias += 3e5 if "biases" in name else 0
        bias[2] = -np.inf if "rows" in name else 0
        mask = mx.array(bias)
    return Call(q=q, k=k, v=v, scale=0.3, mask=mask)


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_caught(mac: StandinMac, alter: Callable[..., None], name: str) -> None:
    _, expected = MISTAKES[name]
    assert outcome(mac, probe(name)) == set(), "all is well before"
    make(name, alter)
    found = outcome(mac, probe(name))
    assert expected <= found


def make(name: str, alter: Callable[..., None]) -> None:
    """Make mistake ``name`` in the package's code."""
    changes, _ = MISTAKES[name]
    execute.the_engine.forget()
    by_module: dict[str, list[tuple[str, str]]] = {}
    for module, *replacements in changes:
        by_module.setdefault(module, []).extend(replacements)  # type: ignore[arg-type]
    for module, replacements in by_module.items():
        alter(module, *replacements)
    if "limits" in by_module:
        alter("execute")  # which has imported the table by name


def test_causal_with_other_lengths_would_be_wrong(mac: StandinMac) -> None:
    """Why it is refused: the library aligns at the top left."""
    q, k, v = draw(SIZES)
    call = Call(q=q, k=k, v=v, scale=0.3, mask="causal")
    problem = describe(q, k, v, "causal")
    assert problem is not None
    assert "causal" in str(metal.accurate.refuses(problem))
    assert outcome(mac, call) == {WRONG}


def test_an_output_that_is_used_again_is_caught(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe("")
    problem = describe(first.q, first.k, first.v)
    assert problem is not None
    mx.eval(first.arrays())
    kept = execute.fresh(SIZES_OF_OUT, mx.float32, interleaved=False)
    monkeypatch.setattr(execute, "fresh", lambda *_, **__: kept)
    lazy = metal.accurate.run(first) * 1
    second = replace(first, v=first.v + 1)
    mx.eval(second.arrays())
    metal.accurate.run(second)
    with pytest.raises(AssertionError):
        assert_exact(lazy, first)
    del mac


def test_a_commit_after_an_error_code_is_caught(
    mac: StandinMac, alter: Callable[..., None]
) -> None:
    alter(
        "execute",
        (
            "_check(engine, _encode(engine, objc, commands, work))",
            "_encode(engine, objc, commands, work)",
        ),
    )
    mac.switch(encode_code=5)
    assert "a command buffer was committed after an error code" in outcome(mac, probe(""))


def test_missing_lock_is_caught(mac: StandinMac, alter: Callable[..., None]) -> None:
    first = "        engine = the_engine()"
    alter("execute", (f"    with _lock:\n{first}", f"    if True:\n{first}"))
    call = probe("mask")
    problem = describe(call.q, call.k, call.v, call.mask)
    assert problem is not None
    mx.eval(call.arrays())
    metal.accurate.run(call)
    mac.switch(encode_us=20000)
    gate = threading.Barrier(2)

    def work() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            gate.wait()
            metal.accurate.run(call)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mac.misuses() & {
        "two threads are inside the library",
        "the mask memory of an unfinished call is written to",
    }


CHILD = """
import mlx.core as mx
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.base import Call
from qwen_mfa.kernels.metal import execute
from qwen_mfa.problem import describe
from tests.qwen_mfa.attention.problems import Shape, draw
{setup}
q, k, v = draw(Shape(b=1, hq=1, hkv=1, sq=2048, skv=4, d=8, dv=8), mx.float16)
mx.eval(q, k, v)
out = metal.accurate.run(Call(q=q, k=k, v=v, scale=0.3))
mx.eval(out)
print("survived")
"""
FEIGN_SHORT = "execute._check_sizes = lambda *_: None; fresh = execute.fresh\n"
FATAL = {
    "an output overrun, into a guard page": (
        "overrun_faults=1",
        FEIGN_SHORT + "execute.fresh = lambda s, d, **o: fresh(s, mx.float16, **o)",
    ),
    "the encoder defect": ("abort_on_error=1 encode_code=5", ""),
    "a CPU pointer for a buffer": (
        "overrun_faults=0",
        """from tests.standins.metal import capsules; capsules.settings['cpu_address'] = True
execute._check_sizes = lambda *_: None""",
    ),
    "head_dim 0": (
        "overrun_faults=0",
        """import dataclasses; old = execute._encode
def without_size(engine, objc, commands, work):
    problem = dataclasses.replace(work.problem, head_dim=0)
    return old(engine, objc, commands, dataclasses.replace(work, problem=problem))
execute._encode = without_size""",
    ),
}


def run_child(
    root: Path, library: Path, switches: str, code: str
) -> subprocess.CompletedProcess[str]:
    from tests.standins.metal import activate

    env = {
        "QWEN_MFA_LIBRARY": str(library),
        "QWEN_MFA_METAL_STANDIN": str(root),
        "QWEN_MFA_METAL_SWITCHES": switches,
        "PYTHONPATH": str(activate.SITE),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False,
        cwd=root, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(FATAL))
def test_what_ends_a_process_on_a_mac_ends_it_here(
    root: Path, standin_library: Path, name: str
) -> None:
    switches, setup = FATAL[name]
    done = run_child(root, standin_library, switches, CHILD.format(setup=setup))
    assert done.returncode < 0, done.stderr
    assert "survived" not in done.stdout


def test_the_same_child_survives_without_mistakes(root: Path, standin_library: Path) -> None:
    done = run_child(root, standin_library, "overrun_faults=1", CHILD.format(setup=""))
    assert done.stdout == "survived\n", done.stderr


def test_small_buffers_are_an_error_of_ours(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = execute.fresh
    monkeypatch.setattr(execute, "fresh", lambda s, d, **o: fresh((*s[:2], s[2] - 1, s[3]), d, **o))
    call = probe("")
    problem = describe(call.q, call.k, call.v)
    assert problem is not None
    with pytest.raises(MetalError, match="a Metal buffer holds"):
        metal.accurate.run(call)
    assert mac.count("encodes") == 0
