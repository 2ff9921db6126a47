"""Validation, choice and failure of the Metal kernels, in a child too, over the stand-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.errors import BackendError
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.base import Call
from qwen_mfa.kernels.metal import execute
from qwen_mfa.problem import describe
from qwen_mfa.selection import candidates, choose, session
from qwen_mfa.validation.child import validate_in_child
from qwen_mfa.validation.validate import validate
from qwen_mfa.validation.variants import variant_of
from tests.qwen_mfa.attention.problems import Shape, assert_exact, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.validation.variants import Variant
    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = [pytest.mark.cpu, pytest.mark.validation]
SHAPE = Shape(b=1, hq=2, hkv=2, sq=13, skv=21, d=16, dv=16)


def variant(dtype: mx.Dtype = mx.bfloat16, mask: str = "none") -> Variant:
    q, k, v = draw(SHAPE, dtype)
    if mask == "causal":
        k, v = q, q
    array = {"bool": mx.ones((13, 21), dtype=mx.bool_), "additive": mx.zeros((13, 21), dtype=dtype)}
    problem = describe(q, k, v, array.get(mask, None if mask == "none" else mask))
    assert problem is not None
    return variant_of(problem)


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_both_kernels_are_proved_for_what_they_take(
    mac: StandinMac, dtype: mx.Dtype, mask: str
) -> None:
    for kernel in (metal.accurate, metal.low):
        if kernel is metal.low and dtype != mx.bfloat16:
            continue
        runs = mac.count("runs")
        result = validate(kernel, variant(dtype, mask))
        assert result.ok, result.reason
        assert mac.count("runs") > runs + 6


def test_forced_it_is_proved_in_a_child_first_and_then_runs(
    mac: StandinMac, children: Callable[[str], None]
) -> None:
    children("")
    q, k, v = draw(SHAPE)
    out = qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert_exact(out, Call(q=q, k=k, v=v, scale=0.25))
    assert mac.count("runs") == 2, "the validation ran elsewhere"
    problem = describe(q, k, v)
    assert problem is not None
    assert candidates.validated(metal.accurate, problem) is not None


@pytest.mark.parametrize(
    ("switches", "part"),
    [
        ("abort_on_error=1 encode_code=5", "SIGABRT"),
        ("encode_code=4", "Kernel compilation failed"),
        ("gpu_error=1", "GPU Timeout"),
        ("rejects_asm=1 rejects_plain=1", "Xcode with its Metal toolchain"),
    ],
)
def test_a_library_that_fails_its_proof_never_runs_here(
    mac: StandinMac, children: Callable[[str], None], switches: str, part: str
) -> None:
    children(switches)
    result = validate_in_child("metal", variant(), "cpu")
    assert not result.ok
    assert part in result.reason
    q, k, v = draw(SHAPE)
    with pytest.raises(BackendError, match="not validated"):
        qwen_mfa.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert mac.count("encodes") == 0


def test_messages_on_standard_output_do_not_disturb_the_proof(
    mac: StandinMac, children: Callable[[str], None]
) -> None:
    children("prints=1")
    result = validate_in_child("metal", variant(), "cpu")
    assert result.ok, result.reason
    del mac


def test_a_plain_variant_is_used_where_upstream_s_is_rejected(mac: StandinMac) -> None:
    mac.switch(rejects_asm=1)
    assert validate(metal.accurate, variant()).ok


def test_validation_has_rows_that_begin_between_two_of_a_pair(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each operand; what is dense or has even steps is not copied."""
    real, found = execute._splits_pairs, []

    def logged(*arguments: Any) -> bool:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(execute, "_splits_pairs", logged)
    assert validate(metal.accurate, variant()).ok
    by_operand = [found[operand::3] for operand in range(3)]
    assert all({True, False} == set(each) for each in by_operand)
    del mac


def test_unforced_it_must_be_measured_faster(
    mac: StandinMac, children: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in computes in plain loops: MLX wins, and says so."""
    children("")
    monkeypatch.setenv("QWEN_MFA_BACKEND", "-cpu,-mlx-fp16,-metal-low")
    session.start()
    q, k, v = draw(Shape(b=1, hq=2, hkv=2, sq=96, skv=96, d=32, dv=32))
    problem = describe(q, k, v)
    assert problem is not None
    choice = choose.choose(problem)
    (finding,) = (x for x in choice.findings if x.kernel is metal.accurate)
    assert choice.kernel.name == "mlx"
    assert finding.validation is not None
    assert finding.validation.ok
    assert finding.samples
    assert "MLX's speed" in finding.reason
    del mac
