"""The portable engine beside PyTorch's CPU attention, interleaved in one process.

    python benchmarks/engine/compare_pytorch.py LIBRARY [--clock cpu] [--rounds N] [--spread F]
        [--only S,S,…] [--package]

LIBRARY is a built libMFAFFI. With ``--package``, ours is `qwen_mfa.scaled_dot_product_attention`
instead, as programs call it, of MLX arrays with the same contents, with the portable engine forced;
its results are evaluated. Each round runs both on the same tensors; the speed-up is the median
of per-round ratios. With ``--clock cpu`` both use one thread and the thread's own CPU time, which
other load on the machine disturbs least. ``--spread F`` multiplies queries by F, so that
scores lie F times as far apart: most weights are then next to 0. Errors are the largest against
float64 for two heads, as means over several seeds. ``--only`` compares square problems of these
lengths, in BF16, with all the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

if TYPE_CHECKING:
    from collections.abc import Callable

U32, U64, I64, I32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int32
PRECISION = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
SEEDS = 5  # of the inputs whose errors are looked at
SETTLE = 0.05  # seconds: PyTorch's threads spin on for a while, on the cores that come next


class Arguments(ctypes.Structure):
    """mfa_portable_args_t."""

    _fields_ = (
        *((name, U32) for name in ("struct_bytes", "batch", "heads_q", "heads_kv", "seq_q")),
        *((name, U32) for name in ("seq_kv", "head_dim", "value_dim")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        *((f"{name}_bytes", U64) for name in ("q", "k", "v", "out")),
        *((f"{name}_strides", I64 * 3) for name in ("q", "k", "v", "out")),
        *((name, I32) for name in ("input_precision", "output_precision")),
        ("mask", ctypes.c_void_p),
        ("mask_bytes", U64),
        ("mask_strides", I64 * 4),
        *((name, I32) for name in ("mask_type", "mask_scalar_type")),
        ("sinks", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        *((name, I32) for name in ("causal", "empty_rows")),
        ("max_threads", U32),
    )


class Engine:
    """The library, and one context."""

    def __init__(self, path: str, threads: int) -> None:
        self.library = ctypes.CDLL(path)
        self.threads = threads
        self.context = ctypes.c_void_p()
        if self.library.mfa_create_context(ctypes.byref(self.context)) != 0:
            msg = f"{path}: no context"
            raise SystemExit(msg)

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
    ) -> Callable[[], None]:
        """Return the call that writes attention of [B, H, S, D] tensors into ``out``.

        Its arguments are made once: by ctypes that takes 15 us, which is none of the engine's.
        """
        a = Arguments(struct_bytes=ctypes.sizeof(Arguments))
        a.batch, a.heads_q, a.seq_q, a.head_dim = q.shape
        a.heads_kv, a.seq_kv, a.value_dim = v.shape[1:]
        for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out)):
            setattr(a, name, tensor.data_ptr())
            setattr(a, f"{name}_bytes", tensor.numel() * tensor.element_size())
            setattr(a, f"{name}_strides", (I64 * 3)(*tensor.stride()[:3]))
        a.input_precision, a.output_precision = PRECISION[q.dtype], PRECISION[out.dtype]
        a.scale = q.shape[-1] ** -0.5
        a.max_threads = self.threads
        function, context, pointer = (
            self.library.mfa_portable_attention,
            self.context,
            ctypes.byref(a),
        )

        def call() -> None:
            code = function(context, pointer)
            if code != 0:
                msg = f"error {code}"
                raise SystemExit(msg)

        return call

    def result(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return attention of these tensors."""
        out = torch.empty_like(q)
        self.attention(q, k, v, out)()
        return out


class Package:
    """The package as programs call it."""

    def __init__(self) -> None:
        # Not needed, and perhaps not there, where the library itself is compared.
        import mlx.core as mx  # noqa: PLC0415

        import qwen_mfa  # noqa: PLC0415

        self.mx, self.function = mx, qwen_mfa.scaled_dot_product_attention
        self.forced = qwen_mfa.use("cpu")
        self.forced.__enter__()  # to the end

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: torch.Tensor | None = None
    ) -> Callable[[], Any]:
        """Return the call that computes attention of the tensors' contents, as an MLX array."""
        mx, function, scale = self.mx, self.function, q.shape[-1] ** -0.5
        dtype = getattr(mx, str(q.dtype).removeprefix("torch."))
        arrays = [mx.array(x.float().numpy()).astype(dtype) for x in (q, k, v)]
        mx.eval(arrays)

        def call() -> Any:
            found = function(*arrays, scale=scale)
            mx.eval(found)
            return found

        return call

    def result(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return attention of these tensors."""
        found = self.attention(q, k, v)().astype(self.mx.float32)
        return torch.tensor(memoryview(found).tolist()).to(q.dtype)


def compare(
    engine: Engine | Package,
    clock: Callable[[], float],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    rounds: int,
    spread: float,
) -> None:
    """Time one (heads, queries, keys, head_dim) on both and print the line."""
    heads, queries, keys, dim = shape
    torch.manual_seed(0)
    q = (spread * torch.randn(1, heads, queries, dim)).to(dtype)
    k, v = (torch.randn(1, heads, keys, dim).to(dtype) for _ in range(2))
    out = torch.empty_like(q)

    ours = engine.attention(q, k, v, out)

    def theirs() -> torch.Tensor:
        return torch_attention(q, k, v)

    def seconds(call: Callable[[], object], times: int) -> float:
        time.sleep(SETTLE)
        call()  # wakes its threads
        start = clock()
        for _ in range(times):
            call()
        return (clock() - start) / times

    ours()
    errors = largest_errors(engine, shape, dtype, spread)
    times = max(1, int(20e-3 / max(seconds(ours, 1), 1e-6)))
    pairs = [(seconds(ours, times), seconds(theirs, times)) for _ in range(rounds)]
    speedup = statistics.median(b / a for a, b in pairs)
    flops = 4 * heads * queries * keys * dim * 1e-9
    mine, torchs = (statistics.median(column) for column in zip(*pairs, strict=True))
    name = str(dtype).removeprefix("torch.")
    print(
        f"H{heads} Sq{queries} Skv{keys} D{dim} {name:9}"
        f" ours {mine * 1e3:9.3f} ms {flops / mine:6.1f} GFLOP/s"
        f"  PyTorch {torchs * 1e3:9.3f} ms {flops / torchs:6.1f} GFLOP/s"
        f"  x{speedup:.2f}  error {errors[0]:.2e} / {errors[1]:.2e}",
        flush=True,
    )


def largest_errors(
    engine: Engine | Package, shape: tuple[int, int, int, int], dtype: torch.dtype, spread: float
) -> tuple[float, float]:
    """Return ours and PyTorch's largest error against float64, as means over `SEEDS`."""
    _, queries, keys, dim = shape
    found = []
    for seed in range(SEEDS):
        draw = torch.Generator().manual_seed(seed)
        q, k, v = (
            (factor * torch.randn(1, 2, length, dim, generator=draw)).to(dtype)
            for length, factor in ((queries, spread), (keys, 1), (keys, 1))
        )
        exact = torch_attention(q.double(), k.double(), v.double())
        both = engine.result(q, k, v), torch_attention(q, k, v)
        found.append([(x.double() - exact).abs().max().item() for x in both])
    ours, theirs = (statistics.mean(column) for column in zip(*found, strict=True))
    return ours, theirs


def main() -> None:
    """Compare on Qwen-Image's shapes, small ones, and decoding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?")
    parser.add_argument("--package", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="S,S,…")
    options = parser.parse_args()
    if options.package == (options.library is not None):
        parser.error("say either a library or --package")
    one = options.clock == "cpu"
    clock = time.thread_time if one else time.perf_counter
    if one:
        torch.set_num_threads(1)
    engine = Package() if options.package else Engine(options.library, 1 if one else 0)
    large = 4 if one else 24
    for length in map(int, filter(None, options.only.split(","))):
        shape = (large, length, length, 128)
        compare(engine, clock, shape, torch.bfloat16, options.rounds, options.spread)
    if options.only:
        return
    for dtype in (torch.float32, torch.bfloat16):
        for length in (16, 32, 64, 128, 256):
            compare(engine, clock, (24, length, length, 128), dtype, options.rounds, options.spread)
        for length in (256, 1024, 4196):
            compare(engine, clock, (24, 1, length, 128), dtype, options.rounds, options.spread)
        for length in (1124, 4196, 6989):
            rounds = max(3, options.rounds * 1124 // length // (1 if one else 4))
            compare(engine, clock, (large, length, length, 128), dtype, rounds, options.spread)


if __name__ == "__main__":
    main()
