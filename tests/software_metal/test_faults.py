"""Faults seeded into an attention kernel: the checker, the run time or the numbers catch each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.software_metal.attention import Case, source
from tests.software_metal.conftest import Ends

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.software_metal.attention import Outcome

pytestmark = pytest.mark.cpu

TG = "threadgroup_barrier(mem_flags::mem_threadgroup);"
RACE = "race between simdgroups: "
WRONG = 1e-3  # FP32 intermediates are right to 1e-6
NUMBERS = "numbers"

# Name: what is replaced (it occurs once), by what, what catches it, and the case.
FAULTS: dict[str, tuple[str, str, str, Case]] = {
    "no barrier before the keys": (f"{TG} // the tile is free", "", RACE, Case()),
    "no barrier behind the keys": (f"{TG} // keys are here", "", RACE, Case()),
    "no barrier before the values": (f"{TG} // keys are read", "", RACE, Case()),
    "no barrier behind the values": (f"{TG} // values are here", "", RACE, Case()),
    "no barrier before the result": (f"{TG} // values are read", "", RACE, Case()),
    "no barrier behind the result": (f"{TG} // the result is whole", "", RACE, Case()),
    "no barrier behind the queries": (f"{TG} // queries are here", "", RACE, Case(apple9=False)),
    "a barrier for other memory": (
        f"{TG} // keys are here",
        "threadgroup_barrier(mem_flags::mem_device);",
        "ordered by a barrier for other memory only: read of threadgroup memory",
        Case(),
    ),
    "one key too many": (
        "min(uint(BLOCK), C - c);",
        "min(uint(BLOCK), C - c + 1);",
        "out of bounds: read of",
        Case(batch=1, heads=1),
    ),
    "one row too many": (
        "O + first * D, D, ushort2(D, min(uint(ROWS), R - first))",
        "O + first * D, D, ushort2(D, min(uint(ROWS), R - first + 1))",
        "out of bounds: write",
        Case(),
    ),
    "one output for the whole batch": (
        "O += (gid.z * heads + gid.y) * R * D;",
        "O += gid.y * R * D;",
        "race between threadgroups: write of buffer 3",
        Case(),
    ),
    "queries behind the last": ("min(row, R - 1)", "row", "out of bounds: read of", Case()),
    "a wrong guard for L": ("row < R && at.x", "row <= R && at.x", "out of bounds: write", Case()),
    "strides swapped": (
        "gid.z * uint(K_strides[0]) + gid.y * uint(K_strides[1])",
        "gid.z * uint(K_strides[1]) + gid.y * uint(K_strides[0])",
        NUMBERS,
        Case(),
    ),
    "the keys' stride for the values": (
        "uint(V_strides[2])",
        "uint(V_strides[1])",
        "out of",
        Case(),
    ),
    "heads of the keys by the queries' stride": (
        "gid.y * uint(K_strides[1])",
        "gid.y * uint(Q_strides[1])",
        "out of bounds: read of",
        Case(),
    ),
    "an odd element": ("Q_row + d * 8 + at.x)", "Q_row + d * 8 + at.x + 1)", "misaligned", Case()),
    "a sum that starts with nothing": ("float l = 0.0;", "float l;", NUMBERS, Case()),
    "an output that starts with nothing": (
        "*(o[d].elements()) = vec<float, 2>(0);",
        "",
        NUMBERS,
        Case(),
    ),
    "an output that is not rescaled": (
        "vec<float, 2>(shrink)",
        "vec<float, 2>(1)",
        NUMBERS,
        Case(),
    ),
    "a maximum of half a row": (
        "best = max(best, simd_shuffle_xor(best, 8));",
        "",
        NUMBERS,
        Case(),
    ),
    "causal off by one": (
        "column > row",
        "column >= row",
        NUMBERS,
        Case(causal=True, length_kv=37),
    ),
    "the mask transposed": (
        "* R + safe) * C + column",
        "* R + column) * C + safe",
        NUMBERS,
        Case(),
    ),
    "masked columns forgotten": ("column >= C || ", "", NUMBERS, Case(bias=False)),
    "a barrier for one simdgroup": (
        f"{TG} // keys are read",
        f"if (sidx == 0) {{ {TG} }}",
        "never reach",
        Case(),
    ),
    "a shuffle of half a simdgroup": (
        "sum += simd_shuffle_xor(sum, 8);",
        "if (lane < 16) sum += simd_shuffle_xor(sum, 8);",
        "divergence: ",
        Case(),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, attend: Callable[..., Outcome]) -> None:
    anchor, replacement, catcher, case = FAULTS[name]
    text = source(case)
    assert text.count(anchor) == 1
    faulty = text.replace(anchor, replacement)
    checked = Case(**{**case.__dict__, "check": catcher != NUMBERS})
    if catcher in {"misaligned", "divergence: ", "never reach", "out of bounds: write"}:
        # What a GPU would hang on, or take as it comes, ends the process with a sentence.
        with pytest.raises(Ends, match=catcher):
            attend(checked, faulty)
        return
    found = attend(checked, faulty)
    if catcher == NUMBERS:
        assert not found.error < WRONG
    else:
        assert any(catcher in text for text in found.findings), found


@pytest.mark.parametrize(
    "case",
    [
        Case(check=True),
        Case(check=True, apple9=False, variant="upstream"),
        Case(check=True, element="half", interleaved=True, bias=False, causal=True),
        Case(low=True, apple9=False),
        Case(low=True, element="half"),
        Case(length_q=1, length_kv=1, heads=1, batch=1),
    ],
    ids=str,
)
def test_without_a_fault_nothing_is_found(case: Case, attend: Callable[..., Outcome]) -> None:
    found = attend(case)
    # Low intermediates of half have scores of half, too.
    low = 1e-2 if case.element == "half" else 1e-3
    assert found.error < (low if case.low else 2e-6)
    assert found.findings == ()
