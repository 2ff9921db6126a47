"""A few lines of Metal, run by one threadgroup."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.standins.software_metal import host

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def one_simdgroup(body: str, *, lanes: int = 32) -> np.ndarray[Any, Any]:
    """Run ``body`` in every lane of one threadgroup and return ``out``, FP32 ``[lanes]``.

    It sees ``out`` (device), ``shared`` (threadgroup), ``lane``, ``simdgroup``, and ``at``, its
    place in the grid.
    """
    out = np.zeros(lanes, np.float32)
    text = f"""{HEAD}
kernel void run(device float *out [[buffer(0)]], threadgroup float *shared [[threadgroup(3)]],
  ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
  uint at [[thread_position_in_grid]]) {{ {body} }}"""
    host.load(text).dispatch(
        "run",
        {0: host.Bound(array=out)},
        threads=(lanes, 1, 1),
        group=(lanes, 1, 1),
        threadgroup_bytes={3: 512},
    )
    return out
