"""The parts of ``qwen-mfa selftest --metal``, each run as ``python -m … SECTION [--quick]``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.cli.device import peak_resident
from qwen_mfa.cli.selftest_metal import answer
from qwen_mfa.errors import QwenMfaError
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.metal import shaders
from qwen_mfa.problem import Problem
from qwen_mfa.tuning import measure
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.validate import validate
from qwen_mfa.validation.variants import variant_of

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = (metal.accurate, metal.low)
DTYPES = ("bfloat16", "float16", "float32")
MASKS = ("none", "causal", "bool", "additive")
# (Sq, Skv): equal, fewer queries, more queries; short and long change the generated shaders.
LENGTHS = ((256, 256), (1124, 1124), (1024, 1124), (1124, 1024))
QUICK_LENGTHS = ((24, 24), (24, 31), (31, 24))
HEAD_DIMS = (128, 64)
SHADER_LENGTHS = (256, 1124)  # one for each masking strategy
TOKENS = (1124, 4196, 6989)  # 512, 1024 and 1328 pixels square, with 100 text tokens
CALLS, QUICK_CALLS = 5000, 300
WARM = 100
# Of the peak: what the allocators of two languages may still take after the warm-up.
GROWTH = 16 << 20


def problem(
    seq_q: int, seq_kv: int, *, dtype: str = "bfloat16", mask: str = "none", dim: int = 128,
    heads: int = 24,
) -> Problem:  # fmt: skip
    """Return a problem with one mask for all heads, if any."""
    shape = (seq_q, seq_kv) if mask in {"bool", "additive"} else ()
    return Problem(
        batch=1, heads_q=heads, heads_kv=heads, seq_q=seq_q, seq_kv=seq_kv, head_dim=dim,
        value_dim=dim, dtype=dtype, mask=mask, mask_shape=shape,
    )  # fmt: skip


def validation(*, quick: bool) -> dict[str, Any]:
    """Validate every variant with every kernel that does not refuse it."""
    validations = []
    for kernel in KERNELS:
        for each in _variants(quick=quick):
            if kernel.refuses(each) is None:
                variant = variant_of(each)
                result = asdict(validate(kernel, variant))
                validations.append({"kernel": kernel.name, "variant": variant.key, **result})
    origins = shaders.origins()
    advice = shaders.advice(origins)
    failures = [f"{p['kernel']}, {p['variant']}: {p['reason']}" for p in validations if not p["ok"]]
    return {
        "validations": validations,
        "shaders": [str(origin) for origin in origins],
        "origins": [asdict(origin) for origin in origins],
        "failures": failures + ([advice] if advice else []),
    }


def _variants(*, quick: bool) -> Iterator[Problem]:
    dims = (16,) if quick else HEAD_DIMS
    for dim in dims:
        for dtype in DTYPES:
            for mask in MASKS:
                for seq_q, seq_kv in QUICK_LENGTHS if quick else LENGTHS:
                    yield problem(seq_q, seq_kv, dtype=dtype, mask=mask, dim=dim)


def shaders_alone(*, quick: bool) -> dict[str, Any]:
    """Ask for the shaders of Qwen-Image's shapes, with one head, and say where they came from."""
    failures = []
    for kernel in KERNELS:
        for dtype in ("bfloat16", "float16"):
            for length in (40,) if quick else SHADER_LENGTHS:
                each = problem(length, length, dtype=dtype, heads=1, dim=16 if quick else 128)
                if kernel.refuses(each) is None:
                    try:
                        mx.eval(kernel.run(draw(each).call))
                    except QwenMfaError as error:
                        failures.append(f"{kernel.name}, {dtype}: {error}")
    return {"shaders": [str(origin) for origin in shaders.origins()], "failures": failures}


def leak(*, quick: bool) -> dict[str, Any]:
    """Call thousands of times and see what memory grows by."""
    calls = QUICK_CALLS if quick else CALLS
    small = problem(33, 47, mask="additive", dim=16 if quick else 128, heads=2)
    call = draw(small).call
    for _ in range(WARM):
        mx.eval(metal.accurate.run(call))
    mx.clear_cache()
    # No peak is forgotten here: the warm-up has reached what a call takes, and a leak goes beyond.
    before, active = peak_resident(), mx.get_active_memory()
    for _ in range(calls):
        mx.eval(metal.accurate.run(call))
    mx.clear_cache()
    growth, kept = peak_resident() - before, mx.get_active_memory() - active
    worst = max(growth, kept)
    failures = [] if worst <= GROWTH else [f"leak: {worst} bytes more after {calls} calls"]
    return {"calls": calls, "growth": growth, "mlx_growth": kept, "failures": failures}


def timing(*, quick: bool) -> dict[str, Any]:
    """Time both kernels against MLX, paired and in turn. Slow is a finding, not a failure."""
    rows = []
    for tokens in (40,) if quick else TOKENS:
        each = problem(tokens, tokens, dim=16 if quick else 128, heads=2 if quick else 24)
        for kernel in KERNELS:
            (sample,) = measure.measure(kernel, (each, each), budget=0.2 if quick else 4.0)
            rows.append({"kernel": kernel.name, "text": str(sample), **asdict(sample)})
    return {"rows": rows, "failures": []}


SECTIONS = {"validation": validation, "shaders": shaders_alone, "leak": leak, "timing": timing}

if __name__ == "__main__":
    answer(SECTIONS[sys.argv[1]](quick="--quick" in sys.argv[2:]))
