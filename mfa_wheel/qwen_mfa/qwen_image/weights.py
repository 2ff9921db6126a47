"""Reading one block's weights from the published checkpoint's safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_flatten

from qwen_mfa.errors import WeightsError
from qwen_mfa.qwen_image.block import TransformerBlock

if TYPE_CHECKING:
    from mlx import nn

INDEX = "diffusion_pytorch_model.safetensors.index.json"
PREFIX = "transformer_blocks.{}."
SHOWN = 6  # names in a message


def load_block(
    source: str | Path, index: int = 0, *, dtype: mx.Dtype | None = None
) -> TransformerBlock:
    """Make a block of the size that the checkpoint has, and load its weights.

    Args:
        source: A safetensors file, or a folder of them (the checkpoint's ``transformer`` folder).
            Names may start with ``transformer_blocks.<index>.`` or be those of one block alone.
        index: Which block.
        dtype: Convert the weights to it; as stored when ``None``.

    Raises:
        WeightsError: The files are missing or unreadable, the block is not in them, or its weights
            are not exactly those of a Qwen-Image block.

    Examples:
        >>> from qwen_mfa import qwen_image
        >>> try:
        ...     block = qwen_image.load_block("Qwen-Image/transformer", 0)
        ... except qwen_mfa.WeightsError:
        ...     print("download the checkpoint first")
        download the checkpoint first

    """
    weights = _block_weights(Path(source), index)
    try:
        inner, dim = weights["attn.to_q.weight"].shape
        (head_dim,) = weights["attn.norm_q.weight"].shape
        heads, rest = divmod(inner, head_dim)
    except (KeyError, ValueError) as error:
        msg = (
            f"{source} holds no Qwen-Image block {index}: attn.to_q.weight [inner, dim] and "
            "attn.norm_q.weight [head_dim] are needed to know its size"
        )
        raise WeightsError(msg) from error
    if rest or not heads:
        msg = f"{source}: attn.to_q.weight has {inner} rows, not a multiple of head_dim {head_dim}"
        raise WeightsError(msg)
    block = TransformerBlock(dim=dim, heads=heads, head_dim=head_dim)
    if dtype is not None:
        weights = {name: array.astype(dtype) for name, array in weights.items()}
    assign(block, weights, origin=f"{source}, block {index}")
    return block


def assign(module: nn.Module, weights: dict[str, mx.array], *, origin: str = "weights") -> None:
    """Give ``module`` exactly these ``weights``; on any mismatch raise and change nothing.

    Args:
        module: A module of this package.
        weights: Names as published, floating-point arrays.
        origin: Where the weights come from, for messages.

    Raises:
        WeightsError: Weights are missing, superfluous, mis-shaped or not floating-point.

    Examples:
        >>> from mlx import nn
        >>> from qwen_mfa import qwen_image
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> qwen_image.assign(layer, {"weight": mx.array([[3.0, 4.0]])})
        >>> layer(mx.array([1.0, 1.0])).item()
        7.0

    """
    expected = dict(tree_flatten(module.parameters()))
    faults = [
        (title, sorted(names))
        for title, names in (
            ("missing", expected.keys() - weights.keys()),
            ("unknown", weights.keys() - expected.keys()),
            (
                "of the wrong shape",
                [
                    f"{name} {list(weights[name].shape)}, not {list(expected[name].shape)}"
                    for name in expected.keys() & weights.keys()
                    if weights[name].shape != expected[name].shape
                ],
            ),
            (
                "not floating-point",
                [n for n, a in weights.items() if not mx.issubdtype(a.dtype, mx.floating)],
            ),
        )
        if names
    ]
    if faults:
        details = "; ".join(f"{len(names)} {title}: {_some(names)}" for title, names in faults)
        msg = (
            f"{origin} does not fit a Qwen-Image block: {details}. "
            "Unquantised weights under the published checkpoint's names are needed."
        )
        raise WeightsError(msg)
    module.load_weights(list(weights.items()))


def _block_weights(source: Path, index: int) -> dict[str, mx.array]:
    prefix = PREFIX.format(index)
    weights: dict[str, mx.array] = {}
    for file in _files(source, prefix):
        weights.update(_load(file))
    chosen = {
        name.removeprefix(prefix): array
        for name, array in weights.items()
        if name.startswith(prefix)
    }
    if not chosen and not any(name.startswith("transformer_blocks.") for name in weights):
        return weights  # a file of one block alone
    return chosen


def _files(source: Path, prefix: str) -> list[Path]:
    """Name the files to read: of a sharded checkpoint, only those that hold the block."""
    if not source.is_dir():
        return [source]
    index = source / INDEX
    if index.is_file():
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted({source / shards[name] for name in shards if name.startswith(prefix)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{index} is not a safetensors index ({error!r}): download it again"
            raise WeightsError(msg) from error
    files = sorted(source.glob("*.safetensors"))
    if not files:
        msg = f"{source} holds no *.safetensors files: name the checkpoint's transformer folder"
        raise WeightsError(msg)
    return files


def _load(file: Path) -> dict[str, mx.array]:
    if not file.is_file():
        msg = f"{file} does not exist: download the checkpoint, or name another file"
        raise WeightsError(msg)
    try:
        loaded = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        msg = f"{file} cannot be read as safetensors ({error}): download it again"
        raise WeightsError(msg) from error
    return dict(loaded) if isinstance(loaded, dict) else {}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
