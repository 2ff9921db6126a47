"""Each known failure, seeded into a stand-in: validation sees it, and results stay right."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.errors import BackendError, RefusedError
from qwen_mfa.kernels import cpu
from qwen_mfa.problem import Problem
from qwen_mfa.selection import candidates, choose, decisions, session
from qwen_mfa.validation import child
from qwen_mfa.validation.inputs import Drawn, draw
from qwen_mfa.validation.validate import validate
from qwen_mfa.validation.variants import variant_of
from tests.qwen_mfa.attention.problems import assert_exact

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call
    from tests.qwen_mfa.conftest import Faulty

pytestmark = pytest.mark.cpu


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``says``: part of what the validation must find."""

    name: str
    says: str = "rows are wrong"
    mask: str = "none"
    dtype: str = "float32"
    seq_q: int = 90
    seq_kv: int = 120
    heads_kv: int = 4


FAULTS = [
    Fault(name="first-head-only", says="in 2 of 4 heads"),
    Fault(name="first-head-only", dtype="bfloat16", says="in 2 of 4 heads"),
    Fault(name="mask-scaled", mask="additive"),
    Fault(name="mask-scaled", mask="additive", dtype="float16"),
    Fault(name="mask-inverted", mask="bool"),
    Fault(name="causal-corner", mask="causal"),
    Fault(name="k-offset"),
    Fault(name="k-offset", seq_q=120, seq_kv=90, says="failed with code 1"),
    Fault(name="strides-ignored"),
    Fault(name="kv-heads-not-shared", heads_kv=2),
    Fault(name="stale", says="second call"),
    Fault(name="first-call", says="first call"),
    Fault(name="scale-baked-in", says="second call"),
    Fault(name="output-overrun", says="outside its output"),
    Fault(name="inputs-changed", says="changes its inputs"),
    Fault(name="nan"),
    Fault(name="half-precision"),
    Fault(name="half-precision", dtype="bfloat16"),
    Fault(name="half-precision", dtype="float16"),
    Fault(name="last-row-of-long-inputs", seq_q=1100, seq_kv=1100, says="at length"),
    Fault(name="device-lost", says="failed with code 5"),
    Fault(name="abort", says="signal 6, SIGABRT"),
]


def problem_of(fault: Fault) -> Problem:
    shape = (1, 1, fault.seq_q, fault.seq_kv) if fault.mask in {"bool", "additive"} else ()
    return Problem(
        batch=1,
        heads_q=4,
        heads_kv=fault.heads_kv,
        seq_q=fault.seq_q,
        seq_kv=fault.seq_kv,
        head_dim=64,
        value_dim=64,
        dtype=fault.dtype,
        mask=fault.mask,
        mask_shape=shape,
    )


def attend(drawn: Drawn) -> mx.array:
    call = drawn.call
    return qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask
    )


def found(problem: Problem) -> candidates.Finding:
    """Return what dispatch knows of the native kernel."""
    (finding,) = (x for x in choose.choose(problem).findings if x.kernel is cpu)
    return finding


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}-{fault.dtype}")
def test_proof_sees_it_and_the_result_is_right(fault: Fault, use_faulty: Faulty) -> None:
    use_faulty(fault.name)
    problem = problem_of(fault)
    drawn = draw(problem)
    # MLX's own 16-bit results are coarser than a kernel's.
    factor = {"float32": 1, "float16": 8, "bfloat16": 8}[fault.dtype]
    assert_exact(attend(drawn), drawn.call, factor=factor)
    assert choose.choose(problem).kernel is not cpu
    finding = found(problem)
    assert finding.validation is not None
    assert not finding.validation.ok
    assert fault.says in finding.validation.reason
    # Forcing overrides measurements, not validation.
    with (
        qwen_mfa.use("cpu"),
        pytest.raises(BackendError, match=r"forces kernel cpu, which cannot run for .*validated"),
    ):
        attend(drawn)


def test_without_a_fault_the_stand_in_is_proved(use_faulty: Faulty) -> None:
    """The control: or the faults might not be what the validations object to."""
    use_faulty("none")
    for fault in FAULTS:
        problem = problem_of(fault)
        result = candidates.validate(cpu, problem)
        assert result.ok, result.reason
        assert 0 < result.margin <= 1
        drawn = draw(problem)
        with qwen_mfa.use("cpu"):
            assert_exact(attend(drawn), drawn.call)
    assert qwen_mfa.stats().calls == {"cpu": len(FAULTS)}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_wrong_element_is_enough(dtype: str) -> None:
    """An error a few times its bound in one element of thousands: an average would not move."""

    class OffInOnePlace:
        name, roundoff, needs_child_validation = "off", cpu.roundoff, False
        refuses = staticmethod(cpu.refuses)

        def run(self, call: Call) -> mx.array:
            out = cpu.run(call)
            error = {"float32": 3e-4, "float16": 0.02, "bfloat16": 0.1}[call.problem.dtype]
            out[0, 1, 7, 3] += error
            return out

    variant = variant_of(problem_of(Fault(name="off", dtype=dtype)))
    assert validate(cpu, variant).ok
    result = validate(OffInOnePlace(), variant)
    assert not result.ok
    assert "1 of 140 rows are wrong, in 1 of 4 heads; at head 1, row 7" in result.reason


def test_a_kernel_that_hangs_is_given_up(
    use_faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_faulty("hang")
    monkeypatch.setattr(child, "LIMIT", 2.0)
    drawn = draw(problem_of(Fault(name="hang")))
    assert_exact(attend(drawn), drawn.call)
    finding = found(problem_of(Fault(name="hang")))
    assert "no answer within 2 s" in finding.reason
    # The machine may just have been busy: tried once more, in another process, and then no more.
    key, *_ = candidates.class_of(problem_of(Fault(name="hang")))
    assert decisions.opened().attempts("cpu", key) == 1


def test_death_condemns_the_kernel_for_every_variant(use_faulty: Faulty) -> None:
    use_faulty("abort")
    first = candidates.validate(cpu, problem_of(Fault(name="abort")))
    assert first.died
    other = candidates.validate(cpu, problem_of(Fault(name="abort", dtype="float16", seq_q=30)))
    assert other.died
    assert other.seconds == 0.0, "it was started again"


def test_a_slow_kernel_is_proved_and_not_used(use_faulty: Faulty) -> None:
    use_faulty("slow")
    problem = problem_of(Fault(name="slow"))
    assert choose.choose(problem).kernel is not cpu
    finding = found(problem)
    assert finding.validation is not None
    assert finding.validation.ok
    assert finding.samples[0].gain < 0
    assert "x MLX's speed" in finding.reason
    drawn = draw(problem)
    assert_exact(attend(drawn), drawn.call)


@pytest.mark.usefixtures("measured")
def test_failing_later_quarantines(
    use_faulty: Faulty, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The device is lost after validation and tuning: MLX answers, one warning, not used again."""
    use_faulty("none")
    problem = problem_of(Fault(name="device-lost", seq_q=300, seq_kv=300))
    assert choose.choose(problem).kernel is cpu, choose.choose(problem).reason
    drawn = draw(problem)
    monkeypatch.setenv("QWEN_MFA_FAULT", "device-lost")
    for _ in range(3):
        assert_exact(attend(drawn), drawn.call)
    monkeypatch.setenv("QWEN_MFA_FAULT", "none")
    assert_exact(attend(drawn), drawn.call)
    warnings = [x for x in caplog.records if x.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "code 5" in warnings[0].getMessage()
    assert "qwen-mfa doctor" in warnings[0].getMessage()
    stats = qwen_mfa.stats()
    assert stats.calls == {"mlx": 4}
    assert "code 5" in stats.quarantined["cpu"]
    assert "code 5" in decisions.opened().failure("cpu"), "doctor, in another process, tells it"
    with qwen_mfa.use("cpu"), pytest.raises(BackendError, match="failed in this process"):
        attend(drawn)


@pytest.mark.usefixtures("measured")
def test_a_failure_elsewhere_is_not_this_call_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the kernel computes one call, it fails another thread: telemetry tells them apart."""
    problem = problem_of(Fault(name="concurrent", seq_q=300, seq_kv=300))
    assert choose.choose(problem).kernel is cpu, choose.choose(problem).reason
    right = cpu.run

    def run(call: Call) -> mx.array:
        session.current.quarantine("cpu", "elsewhere")
        return right(call)

    monkeypatch.setattr(cpu, "run", run)
    drawn = draw(problem)
    assert_exact(attend(drawn), drawn.call)
    assert qwen_mfa.stats().calls == {"cpu": 1}
    assert choose.choose(problem).kernel is not cpu, "a choice outlived its kernel"


@pytest.mark.usefixtures("measured")
def test_a_refused_call_is_mlx_s_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(Fault(name="refused", seq_q=300, seq_kv=300))
    assert choose.choose(problem).kernel is cpu, choose.choose(problem).reason

    def run(call: Call) -> mx.array:
        msg = "not these arrays"
        raise RefusedError(msg)

    drawn = draw(problem)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "run", run)
        assert_exact(attend(drawn), drawn.call)
    ((kernel, reason),) = qwen_mfa.stats().reasons
    assert (kernel, reason) == ("mlx", "cpu refuses this call: not these arrays")
    assert qwen_mfa.stats().quarantined == {}
    assert_exact(attend(drawn), drawn.call)
    assert qwen_mfa.stats().calls == {"mlx": 1, "cpu": 1}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("wrong", ["shape", "dtype", "type", "error"])
def test_impossible_results_quarantine(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(Fault(name="wrong", seq_q=300, seq_kv=300))
    assert choose.choose(problem).kernel is cpu, choose.choose(problem).reason
    right = cpu.run

    def run(call: Call) -> object:
        out = right(call)
        if wrong == "error":
            raise MemoryError
        return {"shape": out[:, :, :-1], "dtype": out.astype(mx.float16), "type": None}[wrong]

    monkeypatch.setattr(cpu, "run", run)
    drawn = draw(problem)
    assert_exact(attend(drawn), drawn.call)
    assert "cpu" in qwen_mfa.stats().quarantined
