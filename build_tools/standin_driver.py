"""One attention call into a library that is linked with the stand-in Metal. Run as a child process.

``python -m build_tools.standin_driver LIBRARY STANDINS REQUEST`` encodes the request (JSON) as the
run time would, and prints JSON: the library's error code, the dispatches, and the shader origins.
It is a process of its own because the stand-in's device, like Metal's, is chosen once, and because
it aborts where Metal aborts.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

STRIDES = ctypes.c_int64 * 4


def encode(library: ctypes.CDLL, standins: ctypes.CDLL, request: dict[str, Any]) -> dict[str, Any]:
    """Call ``mfa_attention_encode_mtl`` with stand-in buffers and return what came of it."""
    for name in ("metal_standin_buffer", "metal_standin_command_buffer"):
        getattr(standins, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p()
    code = library.mfa_create_context(ctypes.byref(context))
    if code != 0:
        return {"code": code, "dispatches": 0, "origins": []}
    commands = standins.metal_standin_command_buffer()
    # The stand-in never reads them: four bytes stand for tensors of any size.
    q, k, v, out = (standins.metal_standin_buffer(ctypes.c_long(4)) for _ in range(4))
    heads, dim = request["heads"], request["head_dim"]
    length_q, length_kv = request["length_q"], request["length_kv"]

    def strides(length: int) -> Any:
        return STRIDES(heads * length * dim, length * dim, dim, 1)

    def tensor(buffer: int, length: int) -> tuple[Any, ...]:
        return (ctypes.c_void_p(buffer), ctypes.c_long(0), strides(length))

    code = library.mfa_attention_encode_mtl(
        context, ctypes.c_void_p(commands),
        *tensor(q, length_q), *tensor(k, length_kv), *tensor(v, length_kv),
        ctypes.c_void_p(out), ctypes.c_long(0),
        None, ctypes.c_long(0), None, None, ctypes.c_uint32(0),
        ctypes.c_int32(0), ctypes.c_int32(0),
        ctypes.c_uint32(1), ctypes.c_uint32(length_q), ctypes.c_uint32(length_kv),
        ctypes.c_uint32(heads), ctypes.c_uint16(dim), ctypes.c_float(request["scale"]),
        ctypes.c_bool(request["causal"]),
        request["input"].encode(), request["intermediate"].encode(),
    )  # fmt: skip
    return {
        "code": code,
        "dispatches": standins.metal_standin_dispatches(ctypes.c_void_p(commands)),
        "origins": json.loads(origins(library)),
    }


def origins(library: ctypes.CDLL) -> bytes:
    """Return the JSON of ``mfa_shader_origins``."""
    size = library.mfa_shader_origins(None, ctypes.c_long(0))
    buffer = ctypes.create_string_buffer(size)
    library.mfa_shader_origins(buffer, ctypes.c_long(size))
    return buffer.value


if __name__ == "__main__":
    answer = encode(ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2]), json.loads(sys.argv[3]))
    sys.stdout.write(json.dumps(answer) + "\n")
