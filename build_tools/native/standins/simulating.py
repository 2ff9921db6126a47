"""Attention calls that are really computed, against float64. Run as a child process.

``python -m build_tools.native.standins.simulating LIBRARY STANDINS`` reads a JSON list of cases and
prints a line of JSON for each. The device's family and the shader variant are the environment's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from build_tools.native.standins.encoding import STRIDES, origins

_ADDITIVE, _FP32 = 2, 3
_FLOATS = {"fp16": np.float16, "fp32": np.float32}  # NumPy has no bfloat16


def attend(library: ctypes.CDLL, standins: ctypes.CDLL, case: dict[str, Any]) -> dict[str, Any]:
    """Compute one case; return its error code, largest error, hash of the bits, and findings."""
    rng = np.random.default_rng(case["seed"])
    heads, dim, batch = case["heads"], case["head_dim"], case["batch"]
    lengths = (case["length_q"], case["length_kv"], case["length_kv"])
    q, k, v = (
        _operand(rng, (batch, heads, length, dim), case["input"], case["layout"])
        for length in lengths
    )
    bias = _bias(rng, case)
    out = np.full((batch, heads, lengths[0], dim), np.nan, np.float32)
    context = ctypes.c_void_p()
    if library.mfa_create_context(ctypes.byref(context)) != 0:
        return {"code": 3}
    with tempfile.TemporaryDirectory() as folder:
        findings = Path(folder, "findings")
        os.environ["SOFTWARE_METAL_FINDINGS"] = str(findings)
        os.environ["SOFTWARE_METAL_SCHEDULE"] = case["schedule"]
        commands = ctypes.c_void_p(standins.standin_commands())
        code = _encode(library, standins, context, commands, (q, k, v), bias, out, case)
        if code == 0:
            standins.standin_commit(commands)
            standins.standin_wait(commands)
        found = findings.read_text(encoding="utf-8") if findings.is_file() else ""
    exact = _exact(q[1], k[1], v[1], bias, case)
    return {
        "code": code,
        "error": float(np.abs(out - exact).max()) if code == 0 else None,
        "bits": hashlib.sha256(out.tobytes()).hexdigest(),
        "findings": sorted({line.split("\t")[0] for line in found.splitlines()}),
        "origins": json.loads(origins(library)),
    }


def _operand(
    rng: np.random.Generator, shape: tuple[int, ...], element: str, layout: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return elements in memory, seen as BHSD, and their values in float64."""
    batch, heads, length, dim = shape
    stored = (batch, length, heads, dim) if layout == "interleaved" else shape
    values = rng.standard_normal(stored, dtype=np.float32)
    if element in _FLOATS:
        memory: np.ndarray[Any, Any] = values.astype(_FLOATS[element])
        exact = memory.astype(np.float64)
    else:
        memory = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
        exact = (memory.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if layout == "interleaved":
        return memory.transpose(0, 2, 1, 3), exact.transpose(0, 2, 1, 3)
    return memory, exact


def _bias(rng: np.random.Generator, case: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    if case["mask"] not in {"padding", "additive"}:
        return None
    q, kv = case["length_q"], case["length_kv"]
    if case["mask"] == "padding":
        bias = np.zeros((case["batch"], 1, 1, kv), np.float32)
        bias[..., kv - kv // 3 :] = -60000.0
        return bias
    return rng.standard_normal((1, case["heads"], q, kv), dtype=np.float32)


def _encode(
    library: ctypes.CDLL, standins: ctypes.CDLL, context: ctypes.c_void_p,
    commands: ctypes.c_void_p, operands: tuple[Any, ...], bias: Any, out: Any,
    case: dict[str, Any],
) -> int:  # fmt: skip
    def buffer(array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        size = ctypes.c_size_t(array.nbytes)
        pointer = ctypes.c_void_p(array.ctypes.data)
        return ctypes.c_void_p(standins.standin_buffer(pointer, size)), ctypes.c_long(0)

    def steps(array: np.ndarray[Any, Any]) -> Any:
        return STRIDES(*(step // array.itemsize for step in array.strides))

    tensors = [part for array, _ in operands for part in (*buffer(array), steps(array))]
    none = ctypes.c_uint32(0), ctypes.c_int32(0), ctypes.c_int32(0)
    mask: tuple[Any, ...] = (None, ctypes.c_long(0), None, None, *none)
    if bias is not None:
        kind = ctypes.c_uint32(4), ctypes.c_int32(_ADDITIVE), ctypes.c_int32(_FP32)
        mask = (*buffer(bias), STRIDES(*bias.shape), steps(bias), *kind)
    return int(
        library.mfa_attention_encode_mtl(
            context, commands, *tensors, *buffer(out), *mask,
            ctypes.c_uint32(case["batch"]), ctypes.c_uint32(case["length_q"]),
            ctypes.c_uint32(case["length_kv"]), ctypes.c_uint32(case["heads"]),
            ctypes.c_uint16(case["head_dim"]), ctypes.c_float(case["head_dim"] ** -0.5),
            ctypes.c_bool(case["mask"] == "causal"), case["input"].encode(),
            case["intermediate"].encode(),
        )
    )  # fmt: skip


def _exact(q: Any, k: Any, v: Any, bias: Any, case: dict[str, Any]) -> np.ndarray[Any, Any]:
    scores = q @ k.swapaxes(-1, -2)
    if bias is not None:
        scores = scores + bias  # before the scale, as the library has it
    if case["mask"] == "causal":
        scores = np.where(np.triu(np.ones(scores.shape[-2:], bool), 1), -np.inf, scores)
    scores = scores * case["head_dim"] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray((weights / weights.sum(-1, keepdims=True)) @ v)


if __name__ == "__main__":
    loaded = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2])
    for name in ("standin_buffer", "standin_commands"):
        getattr(loaded[1], name).restype = ctypes.c_void_p
    for each in json.loads(sys.stdin.read()):
        # The library prints, too: our lines are the objects.
        sys.stdout.write("\n" + json.dumps(attend(*loaded, each)) + "\n")
