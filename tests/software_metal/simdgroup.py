"""A few lines of Metal, run by one threadgroup."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.standins.software_metal import host

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def one_kernel(name: str, body: str) -> str:
    """Return the source of a kernel that runs ``body``.

    It sees ``out`` (device), ``shared`` (threadgroup), ``lane``, ``simdgroup``, and ``at``, its
    place in the grid.
    """
    return f"""{HEAD}
kernel void {name}(device float *out [[buffer(0)]], threadgroup float *shared [[threadgroup(3)]],
  ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
  uint at [[thread_position_in_grid]]) {{ {body} }}
"""


def one_simdgroup(body: str, *, lanes: int = 32) -> np.ndarray[Any, Any]:
    """Run ``body`` in every lane of one threadgroup and return ``out``, FP32 ``[lanes]``."""
    out = np.zeros(lanes, np.float32)
    host.load(one_kernel("run", body)).dispatch(
        "run",
        {0: host.Bound(array=out)},
        threads=(lanes, 1, 1),
        group=(lanes, 1, 1),
        threadgroup_bytes={3: 512},
    )
    return out
