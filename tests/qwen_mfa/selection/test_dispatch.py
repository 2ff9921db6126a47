"""Choosing: forced, forbidden, recorded, measured once; in threads, processes, traces and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import qwen_mfa
from qwen_mfa import telemetry
from qwen_mfa.errors import BackendError
from qwen_mfa.kernels import cpu, mlx
from qwen_mfa.native import library
from qwen_mfa.problem import Problem
from qwen_mfa.selection import candidates, choose, decisions, environment, override, session
from qwen_mfa.tuning import measure
from qwen_mfa.validation.inputs import draw
from tests.qwen_mfa.attention.problems import assert_exact
from tests.qwen_mfa.conftest import python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qwen_mfa.validation.inputs import Drawn

pytestmark = pytest.mark.cpu


def problem(tokens: int = 128, dtype: str = "float32", heads: int = 4, **changes: Any) -> Problem:
    values = {
        "batch": 1,
        "heads_q": heads,
        "heads_kv": heads,
        "seq_q": tokens,
        "seq_kv": tokens,
        "head_dim": 64,
        "value_dim": 64,
        "dtype": dtype,
    }
    return Problem(**{**values, **changes})


def attend(drawn: Drawn, **options: Any) -> mx.array:
    call = drawn.call
    return qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask, **options
    )


# --- forcing and forbidding ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "forced", "forbidden"),
    [
        ("", None, set()),
        ("auto", None, set()),
        ("cpu", "cpu", set()),
        (" mlx ", "mlx", set()),
        ("-cpu", None, {"cpu"}),
        ("-cpu, -mlx-fp16", None, {"cpu", "mlx-fp16"}),
        ("mlx-fp16", "mlx-fp16", set()),
    ],
)
def test_policies(text: str, forced: str | None, forbidden: set[str]) -> None:
    found = override.parse(text, "here")
    assert found.forced == forced
    assert found.forbidden == forbidden


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpu", "'gpu' is not a kernel"),
        ("-gpu", "'gpu' is not a kernel"),
        ("cpu,mlx", "force one kernel"),
        ("cpu,-mlx-fp16", "force one kernel"),
        ("-mlx", "mlx cannot be forbidden"),
    ],
)
def test_policies_that_cannot_be(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=says), qwen_mfa.use(text):
        pass
    monkeypatch.setenv("QWEN_MFA_BACKEND", text)
    session.start()
    with pytest.raises(BackendError, match=rf"QWEN_MFA_BACKEND={text}.*{says}"):
        attend(draw(problem()))


@pytest.mark.parametrize("kernel", ["cpu", "mlx"])
def test_forcing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(problem())
    with qwen_mfa.use(kernel):
        assert_exact(attend(drawn), drawn.call)
        other = "mlx" if kernel == "cpu" else "cpu"
        with qwen_mfa.use(other):
            assert choose.choose(problem()).kernel.name == other
        assert choose.choose(problem()).kernel.name == kernel
    assert qwen_mfa.stats().calls == {kernel: 1}
    monkeypatch.setenv("QWEN_MFA_BACKEND", kernel)
    session.start()
    attend(drawn)
    assert qwen_mfa.stats().calls == {kernel: 2}
    ((_, reason),) = [x for x in qwen_mfa.stats().reasons if "QWEN_MFA_BACKEND" in x[1]]
    assert f"QWEN_MFA_BACKEND={kernel} forces it" in reason


def test_a_forced_kernel_that_refuses_raises_with_its_reason() -> None:
    big = problem(head_dim=2048, value_dim=2048)
    with (
        qwen_mfa.use("cpu"),
        pytest.raises(BackendError, match=r"head_dim 2048/2048 is outside 1 to 1024.*Unset"),
    ):
        attend(draw(big))
    with qwen_mfa.use("mlx-fp16"), pytest.raises(BackendError, match="this is float32"):
        attend(draw(problem()))


def test_forcing_belongs_to_its_thread() -> None:
    found: list[str] = []
    with qwen_mfa.use("mlx"):
        thread = threading.Thread(target=lambda: found.append(choose.policy().source))
        thread.start()
        thread.join()
    assert "use" not in found[0]
    assert "use" not in choose.policy().source


def test_forbidding(measured: list[tuple[str, Problem]]) -> None:
    of = problem(dtype="bfloat16")
    assert choose.choose(of).kernel is cpu
    with qwen_mfa.use("-cpu, -metal"):
        assert choose.choose(of).kernel.name == "mlx-fp16"
    with qwen_mfa.use("-cpu,-mlx-fp16"):
        choice = choose.choose(of)
    assert choice.kernel is mlx
    assert "forbids it" in choice.reason
    assert [name for name, _ in measured] == ["cpu", "mlx-fp16"], "nothing was measured twice"


# --- what is on record --------------------------------------------------------------------------


def test_nothing_is_measured_twice(measured: list[tuple[str, Problem]], cold: Path) -> None:
    assert choose.choose(problem(100)).kernel is cpu
    assert choose.choose(problem(128)).kernel is cpu  # the same class
    session.start()  # as in a new process
    choice = choose.choose(problem(110))
    assert choice.kernel is cpu
    assert choice.reason.startswith("validated, and 2.01 x MLX's speed")
    assert len(measured) == 1
    choose.choose(problem(300))
    assert len(measured) == 2
    assert len(list(cold.glob("*.json"))) == 1


def test_tune_0_relies_on_records(
    measured: list[tuple[str, Problem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose.choose(problem(100))
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    session.start()
    assert choose.choose(problem(120)).kernel is cpu
    unknown = choose.choose(problem(500))
    assert unknown.kernel is mlx
    assert "not measured yet, and QWEN_MFA_TUNE=0" in unknown.reason
    assert len(measured) == 1


def test_records_of_another_environment_are_not_used(
    measured: list[tuple[str, Problem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose.choose(problem(100))
    real = environment.environment
    monkeypatch.setattr(
        environment, "environment", lambda: {**real(), "mlx": ["99.0", "mlx-cpu 99"]}
    )
    session.start()
    choose.choose(problem(100))
    assert len(measured) == 2


def test_the_fingerprint_has_what_decisions_depend_on() -> None:
    found = environment.environment()
    assert len(found["library"]["sha256"]) == 64
    assert {"features", "threads"} <= set(found["library"])
    assert {"qwen-mfa", "library", "system", "processor", "cpus", "mlx"} <= set(found)
    assert any("mlx-" in x for x in found["mlx"])


def test_what_each_process_measures_makes_no_other_environment(
    measured: list[tuple[str, Problem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of instructions may be about as fast: each has records, and none is looked for."""
    of_dtype = {dtype: replace(problem(100), dtype=dtype) for dtype in ("float32", "bfloat16")}
    seen = []
    for fastest in ("one", "another", "one", "another"):
        monkeypatch.setitem(library.load().facts, "bf16", fastest)
        session.start()
        before = len(measured)
        for each in of_dtype.values():
            assert choose.choose(each).kernel is cpu
        names = [name for name, _ in measured[before:]]
        seen.append((decisions.opened().store.path, names.count(cpu.name)))
    assert len({path for path, _ in seen}) == 1
    assert [count for _, count in seen] == [2, 1, 0, 0]


def test_the_thread_count_makes_another_environment(cold: Path) -> None:
    code = "from qwen_mfa.selection import decisions; print(decisions.opened().store.path)"
    paths = {python(code, QWEN_MFA_NUM_THREADS=n).stdout for n in ("1", "2", "2")}
    assert len(paths) == (2 if (os.cpu_count() or 1) > 1 else 1)


def test_malformed_records_count_as_absent(measured: list[tuple[str, Problem]]) -> None:
    choose.choose(problem(100))
    kept = decisions.opened().store
    for key in kept.records():
        kept.put(key, {"nonsense": 1})
    session.start()
    assert choose.choose(problem(100)).kernel is cpu
    assert len(measured) == 2


def test_without_a_writable_home(
    measured: list[tuple[str, Problem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    session.start()
    assert choose.choose(problem(100)).kernel is cpu
    assert choose.choose(problem(128)).kernel is cpu
    assert len(measured) == 1
    assert "cannot be" in decisions.opened().store.notes[0]


# --- the steady state ---------------------------------------------------------------------------


def test_tiny_problems_are_not_looked_at(cold: Path) -> None:
    assert "tiny" in choose.choose(problem(8)).reason
    attend(draw(problem(8)))
    assert not cold.exists(), "nothing was validated, measured or kept"


def test_where_mlx_is_chosen_a_look_up_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(problem(8))
    attend(drawn)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(choose, "choose", never)
    monkeypatch.setattr("qwen_mfa.attention.describe", never)
    for _ in range(3):
        assert_exact(attend(drawn), drawn.call)
    assert qwen_mfa.stats().calls == {"mlx": 4}


def test_an_unusual_v_decides_nothing_for_others() -> None:
    """What goes straight to MLX is told apart without v: it is right whatever v is."""
    q, k, v = (mx.random.normal((1, 2, 20, 16)) for _ in range(3))
    short, other = v[..., :8], v.astype(mx.float16)
    for first in (short, other):
        session.start()
        qwen_mfa.scaled_dot_product_attention(q, k, first, scale=0.2)
        assert not session.current.straight
    for each in (v, short, other, v):
        ours = qwen_mfa.scaled_dot_product_attention(q, k, each, scale=0.2)
        theirs = mx.fast.scaled_dot_product_attention(q, k, each, scale=0.2)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert mx.array_equal(ours, theirs).item()
    assert len(session.current.straight) == 1


def test_choices_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_CHOICES", 10)
    for tokens in range(1, 40):
        attend(draw(problem(tokens, heads=1)))
    assert 0 < len(session.current.choices) <= 10


def test_imports_bring_only_what_they_need() -> None:
    code = """
import sys
import qwen_mfa
assert "mlx.core" not in sys.modules and "cffi" not in sys.modules
names = {x for x in sys.modules if x.startswith("qwen_mfa")}
assert names == {"qwen_mfa", "qwen_mfa.errors", "qwen_mfa.firstuse"}, names
qwen_mfa.scaled_dot_product_attention
late = {"qwen_mfa.tuning.measure", "qwen_mfa.validation.validate", "qwen_mfa.selection.store"}
late |= {"qwen_mfa.machine", "cffi", "ctypes"}
assert not late & set(sys.modules), late & set(sys.modules)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    for name in qwen_mfa.__all__:
        assert getattr(qwen_mfa, name) is not None
    assert set(qwen_mfa._LAZY) <= set(qwen_mfa.__all__)


# --- counters and events ------------------------------------------------------------------------


@pytest.fixture
def seen() -> Iterator[list[telemetry.Event]]:
    log: list[telemetry.Event] = []
    stop = qwen_mfa.subscribe(log.append)
    yield log
    stop()


def test_counters_and_events_agree(
    seen: list[telemetry.Event], measured: list[tuple[str, Problem]]
) -> None:
    native, tiny = draw(problem(128)), draw(problem(4))
    for _ in range(3):
        attend(native)
    for _ in range(2):
        attend(tiny)
    stats = qwen_mfa.stats()
    assert stats.calls == {"cpu": 3, "mlx": 2}
    assert [event.kernel for event in seen] == ["cpu"] * 3 + ["mlx"] * 2
    assert {(event.kernel, event.reason) for event in seen} == set(stats.reasons)
    assert all(event.problem is not None for event in seen)
    assert all((event.seconds is not None) == (event.kernel == "cpu") for event in seen)
    assert stats.quarantined == {}


def test_no_count_is_lost_between_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda _: [telemetry.record(None, "mlx", "x") for _ in range(2000)], range(8))
        )
    assert qwen_mfa.stats().calls == {"mlx": 16000}


def test_silent_by_default() -> None:
    code = """
import mlx.core as mx, qwen_mfa
q = mx.random.normal((1, 4, 128, 64))
mx.eval(qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.1))
print(qwen_mfa.stats().calls)
"""
    done = python(code)
    assert done.stdout.count("{") == 1, done.stdout
    assert done.stderr == ""


# --- threads, processes, traces, forks ----------------------------------------------------------


def test_many_threads_start_cold(measured: list[tuple[str, Problem]]) -> None:
    drawn = draw(problem(200))
    barrier = threading.Barrier(8)

    def work(_: int) -> np.ndarray:
        barrier.wait()
        return np.array(attend(drawn))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for result in results:
        assert_exact(mx.array(result), drawn.call)
    assert len(measured) == 1
    assert sum(qwen_mfa.stats().calls.values()) == 8


COLD = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
import mlx.core as mx, qwen_mfa
q, k, v = (mx.random.normal((1, 4, 300, 64), key=mx.random.key(i)) for i in range(3))
ours = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.125)
theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125)
print("error", mx.abs(ours - theirs).max().item())
"""


def finished(output: str) -> float:
    return float(output.split("error ")[1].split(maxsplit=1)[0])


def test_many_processes_start_cold(cold: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", COLD], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert all(child.returncode == 0 for child in children)
    assert all(finished(output) < 1e-5 for output in outputs)
    validations = sum(output.count("kernel cpu for") for output in outputs)
    measurements = sum("x MLX's speed" in output for output in outputs)
    assert (validations, measurements) == (1, 1), (
        "one process validates and measures, the others wait"
    )
    assert not list(cold.glob(".*"))


SLOW_TUNING = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
from qwen_mfa.tuning import measure as tuning
def measure(*args, **kwargs):
    print("measuring", flush=True)
    time.sleep(120)
tuning.measure = measure
"""


def test_killed_while_tuning(cold: Path) -> None:
    """Killed by somebody, however often, says nothing about the kernel: the next takes over."""

    def end_one(how: signal.Signals) -> None:
        command = [sys.executable, "-c", SLOW_TUNING + COLD]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("measuring"):
                    break
            child.send_signal(how)

    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        end_one(how)
    assert list(cold.glob("attempt-*")), "it left no mark"
    done = python(COLD)
    assert finished(done.stdout) < 1e-5
    assert "x MLX's speed" in done.stdout
    assert not list(cold.glob("attempt-*"))
    key, *_ = candidates.class_of(problem(300))
    session.start()
    assert decisions.opened().attempts("cpu", key) == 0


CRASHING_TUNING = """
import os, signal
from qwen_mfa.tuning import measure as tuning
def measure(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGSEGV)
tuning.measure = measure
"""


def test_crashing_twice_while_tuning(cold: Path) -> None:
    """No other process tries then, and MLX answers."""
    for deaths in (1, 2):
        assert python(CRASHING_TUNING + COLD).returncode == -signal.SIGSEGV
        assert len(list(cold.glob("attempt-*"))) == 1, deaths
    done = python(COLD)
    assert finished(done.stdout) < 1e-5
    session.start()
    choice = choose.choose(problem(300))
    assert choice.kernel is mlx
    assert "2 times, validating or measuring it crashed" in choice.reason


def test_interrupting_tuning_is_not_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            choose.choose(problem(300))
    key, *_ = candidates.class_of(problem(300))
    assert decisions.opened().attempts("cpu", key) == 0
    with decisions.opened().store.measuring(1.0) as mine:
        assert mine, "the lock was kept"


def test_another_process_that_measures_for_ever(
    cold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", SLOW_TUNING + COLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while not child.stdout.readline().startswith("measuring"):
            pass
        monkeypatch.setattr(candidates, "PATIENCE", 0.2)
        start = time.monotonic()
        choice = choose.choose(problem(300))
        assert time.monotonic() - start < 60
        assert choice.kernel is mlx
        assert "another process is measuring" in choice.reason
        assert not choice.final
        child.kill()
    assert choose.choose(problem(300)).final


@pytest.mark.parametrize("transform", ["compile", "vmap", "grad"])
def test_cold_inside_a_transformation(transform: str, measured: list[tuple[str, Problem]]) -> None:
    drawn = draw(problem(128))
    q, k, v = drawn.call.q, drawn.call.k, drawn.call.v

    def ours(q: mx.array) -> mx.array:
        return qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.125)

    def theirs(q: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125)

    if transform == "compile":
        got, want = mx.compile(ours)(q), theirs(q)
    elif transform == "vmap":
        got, want = (mx.vmap(f)(mx.stack([q, 2 * q])) for f in (ours, theirs))
    else:
        got, want = (mx.grad(lambda q, f=f: (f(q) ** 2).sum())(q) for f in (ours, theirs))
    assert mx.abs(got - want).max().item() < 1e-4
    # Tracing is no time to measure; and what was not decided then is decided afterwards.
    assert bool(measured) == (transform == "grad")
    assert choose.choose(problem(128)).kernel is cpu


@pytest.mark.not_on_cuda("no array can be made in a forked child")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_measures_nothing(measured: list[tuple[str, Problem]]) -> None:
    choose.choose(problem(100))
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        known, unknown = choose.choose(problem(128)), choose.choose(problem(600))
        good = known.kernel is cpu and unknown.kernel is mlx
        os._exit(0 if good and "forked" in unknown.reason else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_another_device_than_the_default_is_mlx_s(measured: list[tuple[str, Problem]]) -> None:
    drawn = draw(problem(128))
    assert_exact(attend(drawn, stream=mx.cpu), drawn.call)
    assert qwen_mfa.stats().calls == {"cpu": 1}


def test_a_kernel_that_fails_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        msg = "no memory"
        raise MemoryError(msg)

    monkeypatch.setattr(measure, "measure", fail)
    drawn = draw(problem(300))
    assert_exact(attend(drawn), drawn.call)
    assert "MemoryError: no memory" in qwen_mfa.stats().quarantined["cpu"]
