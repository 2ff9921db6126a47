"""Problems on which the Metal library would trap, overrun or be wrong never reach it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_mfa.kernels.metal import limits
from qwen_mfa.problem import Problem

pytestmark = pytest.mark.cpu

FITS = Problem(
    batch=1, heads_q=24, heads_kv=24, seq_q=4196, seq_kv=4196, head_dim=128, value_dim=128,
    dtype="bfloat16",
)  # fmt: skip
REFUSED = {
    "batch 0": ({"batch": 0}, "nothing to compute"),
    "head_dim 0": ({"head_dim": 0, "value_dim": 0}, "nothing to compute"),
    "no keys": ({"seq_kv": 0}, "nothing to compute"),
    "batch": ({"batch": 1025, "seq_q": 1, "seq_kv": 1}, "above 1024 x 1024"),
    "length": ({"seq_kv": 65536}, "above 65535"),
    "head_dim": ({"head_dim": 392, "value_dim": 392}, "above 384"),
    "value_dim": ({"value_dim": 64}, "differ"),
    "grouped": ({"heads_kv": 8}, "grouped queries"),
    "sinks": ({"sinks": True}, "sinks"),
    "dtype": ({"dtype": "float64"}, "float64 is none of"),
    "tensor": ({"batch": 512, "heads_q": 64, "heads_kv": 64, "seq_q": 1024, "seq_kv": 1024},
               "2^32"),
    "causal": ({"mask": "causal", "seq_q": 4195}, "Sq and Skv that differ"),
    "mask": ({"mask": "bool", "mask_shape": (1, 1, 4196, 4196)}, "1.6 GiB, and 1 GiB"),
}  # fmt: skip


def test_qwen_image_fits() -> None:
    assert limits.refusal(FITS, "fp32") is None
    assert limits.refusal(FITS, "fp16") is None
    assert limits.refusal(replace(FITS, mask="causal"), "fp32") is None
    small = replace(FITS, seq_q=1124, seq_kv=1124, mask="additive", mask_shape=(1124, 1124))
    assert limits.refusal(small, "fp32") is None


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str) -> None:
    changes, part = REFUSED[name]
    assert part in str(limits.refusal(replace(FITS, **changes), "fp32"))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_low_intermediates_are_for_bfloat16(dtype: str) -> None:
    problem = replace(FITS, dtype=dtype)
    assert limits.refusal(problem, "fp32") is None
    assert "for bfloat16 inputs" in str(limits.refusal(problem, "fp16"))
