"""Other people's attention, where it is installed: what ours is measured against.

Each peer gets its own idea of the inputs once, outside of what is timed, and returns its own kind
of array; none is imported unless it takes part.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.cli import device

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.kernels.base import Call

OPSET = 21  # of ONNX, for the one operator around the contributed one


def refusal(name: str, call: Call) -> str | None:
    """Return why peer ``name`` does not take part, or ``None``."""
    missing = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if device.is_gpu():
        if name != "torch":
            return "computes on the CPU"
        return None if _torch_device() else "this PyTorch has no GPU"
    if name != "torch" and call.mask is not None:
        return "compared without masks only"
    if name in ("onnxruntime", "numpy") and call.q.dtype != mx.float32:
        return "float32 only"
    return None


def work(name: str, call: Call) -> Callable[[], Any]:
    """Return the work of peer ``name``."""
    return _WORK[name](call)


def _bshd(array: mx.array) -> mx.array:
    """Return dense ``[B, S, H, D]`` float32, which holds every 16-bit value."""
    dense = mx.contiguous(array.transpose(0, 2, 1, 3)).astype(mx.float32)
    mx.eval(dense)
    return dense


def _dtype(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _torch_device() -> str:
    """Return PyTorch's name for MLX's default device; empty where it has no such device."""
    torch = importlib.import_module("torch")
    if not device.is_gpu():
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else ""


def _torch(call: Call) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    where = _torch_device()
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(where, lambda: None)

    def convert(array: mx.array) -> Any:
        dense = torch.from_dlpack(_bshd(array)).clone()  # from a GPU's memory, too
        return dense.to(device=where, dtype=getattr(torch, _dtype(array))).transpose(1, 2)

    q, k, v = (convert(array) for array in (call.q, call.k, call.v))
    mask = None
    if isinstance(call.mask, mx.array):
        mask = torch.tensor(call.mask.tolist(), device=where)
    attend = torch.nn.functional.scaled_dot_product_attention
    causal = isinstance(call.mask, str)

    def run() -> Any:
        with torch.no_grad():
            out = attend(q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale)
            wait()
            return out

    return run


def _jax(call: Call) -> Callable[[], Any]:
    jax = importlib.import_module("jax")
    np = importlib.import_module("numpy")
    kind = getattr(jax.numpy, _dtype(call.q))
    arrays = [jax.numpy.asarray(np.array(_bshd(x)), kind) for x in (call.q, call.k, call.v)]
    attend = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=call.scale))
    return lambda: attend(*arrays).block_until_ready()


def _numpy(call: Call) -> Callable[[], Any]:
    np = importlib.import_module("numpy")
    q, k, v = (
        np.ascontiguousarray(np.array(_bshd(x)).transpose(0, 2, 1, 3))
        for x in (call.q, call.k, call.v)
    )

    def run() -> Any:
        scores = (q * np.float32(call.scale)) @ k.swapaxes(-1, -2)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return scores @ v

    return run


def _onnxruntime(call: Call) -> Callable[[], Any]:
    onnx, ort, np = (importlib.import_module(x) for x in ("onnx", "onnxruntime", "numpy"))
    helper, names = onnx.helper, ("query", "key", "value")
    batch, heads, _, dim = call.q.shape
    flat = [
        np.array(_bshd(x)).reshape(batch, x.shape[2], heads * dim) for x in (call.q, call.k, call.v)
    ]
    node = helper.make_node(
        "MultiHeadAttention",
        list(names),
        ["out"],
        domain="com.microsoft",
        num_heads=heads,
        scale=float(call.scale),
    )
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(n, tensor, x.shape)
            for n, x in zip(names, flat, strict=True)
        ],
        [helper.make_tensor_value_info("out", tensor, flat[0].shape)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    # Its threads would go on spinning through the next contestant's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = dict(zip(names, flat, strict=True))
    return lambda: session.run(None, feed)[0]


_WORK: dict[str, Callable[[Call], Callable[[], Any]]] = {
    "torch": _torch,
    "jax": _jax,
    "onnxruntime": _onnxruntime,
    "numpy": _numpy,
}
NEEDED = {
    "torch": ("torch",),
    "jax": ("jax", "numpy"),
    "onnxruntime": ("onnxruntime", "onnx", "numpy"),
    "numpy": ("numpy",),
}
