"""The multiply-add peak that benchmarks are measured against."""

from __future__ import annotations

import platform

import pytest

from qwen_mfa.native import library
from qwen_mfa.native.ffi import ffi

pytestmark = pytest.mark.cpu


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "arm64", "aarch64"), reason="no loop for this CPU"
)
def test_peak_is_measured() -> None:
    found = library.load()
    if platform.machine() == "x86_64" and "fma" not in found.facts["features"]:
        assert found.peak() is None
        return
    one = found.peak(threads=1)
    assert one is not None
    # From a slow core of a decade ago to far beyond any of today's.
    assert 1e9 < one < 1e13
    assert found.lib.mfa_portable_peak_of(2, 1, ffi().NULL) == 1
    assert found.lib.mfa_portable_peak_of(3, 1, ffi().new("double *")) == 1


def test_a_tile_unit_has_a_peak_of_its_own() -> None:
    found = library.load()
    if "amx_bf16" not in found.facts.get("features", ""):
        pytest.skip("this processor or system has no tile unit")
    # Sixteen times as many products a cycle as vectors: far more than any disturbance takes away.
    assert found.peak(1, threads=1) > 2 * found.peak(2, threads=1)
