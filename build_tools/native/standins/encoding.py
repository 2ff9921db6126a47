"""Attention calls into a library that is linked with the stand-in Metal. Run as a child process.

``python -m build_tools.native.standins.encoding LIBRARY STANDINS`` reads a JSON list of requests,
encodes each as the run time would, and prints a line of JSON for each: its error code, the
dispatches, the shader origins, and the sources that the device was given; or the signal that ended
it. Each request is a process of its own because the stand-in's device, like Metal's, is chosen
once, and because it aborts where Metal aborts.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path
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


def encode_apart(
    library: ctypes.CDLL, standins: ctypes.CDLL, request: dict[str, Any]
) -> dict[str, Any]:
    """Encode ``request`` in a fork; ``request["env"]`` is what its device and library see."""
    with tempfile.TemporaryDirectory() as folder:
        answer, record = Path(folder, "answer.json"), Path(folder, "record")
        record.mkdir()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update({"METAL_STANDIN_RECORD": str(record), **request.get("env", {})})
                answer.write_text(json.dumps(encode(library, standins, request)))
                status = 0
            finally:
                # Nothing of the parent's is to be cleaned up here.
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}
        sources = [path.read_text(encoding="utf-8") for path in sorted(record.glob("*.metal"))]
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return {**found, "sources": sources}


if __name__ == "__main__":
    loaded = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2])
    for each in json.loads(sys.stdin.read()):
        # Before the next fork, or the child would print it again.
        print(json.dumps(encode_apart(*loaded, each)), flush=True)  # noqa: T201 - the answer
