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
    one = found.peak(1)
    assert one is not None
    # From a slow core of a decade ago to far beyond any of today's.
    assert 1e9 < one < 1e13
    assert found.lib.mfa_portable_peak(1, ffi().NULL) == 1
