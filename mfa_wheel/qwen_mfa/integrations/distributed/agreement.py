"""Do all ranks make the same picture? Compared before the first step, and watched afterwards."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from qwen_mfa.errors import DistributedError

if TYPE_CHECKING:
    from qwen_mfa.integrations.distributed.group import Team

SAMPLE = 64  # elements of each parameter that are hashed
LONGEST = 140  # characters of a value in a message


def require(team: Team, facts: dict[str, Any]) -> None:
    """Compare ``facts`` (JSON values) over all ranks.

    Raises:
        DistributedError: Some differ; it names each one, with every rank's value.

    """
    told = team.tell(facts)
    names = list(dict.fromkeys(name for each in told for name in each))
    different = [
        name for name in names if any(each.get(name) != told[0].get(name) for each in told)
    ]
    if not different:
        return
    lines = [
        f"{name}: "
        + ", ".join(f"rank {rank} has {_short(each.get(name))}" for rank, each in enumerate(told))
        for name in different
    ]
    msg = (
        f"the ranks would not make the same picture. {'; '.join(lines)}. "
        f"(Ranks: {', '.join(f'{r} is {n}' for r, n in enumerate(team.names))}.) Make these equal, "
        "then start again. Nothing was computed"
    )
    team.part()
    raise DistributedError(msg)


def checksum(array: mx.array) -> mx.array:
    """Return two 32-bit checksums ``[2]`` of an array's bits, lazily.

    The second depends on where each element lies. They are for noticing that two machines drifted
    apart, not against anybody's intent.
    """
    unit = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[array.dtype.size]
    bits = mx.view(mx.contiguous(array).flatten(), unit).astype(mx.uint32)
    # Knuth's multiplicative hashing (The Art of Computer Programming, volume 3, section 6.4).
    places = mx.arange(bits.size, dtype=mx.uint32) * mx.array(2654435761, mx.uint32)
    return mx.stack([mx.sum(bits), mx.sum((bits ^ places) * (places | 1))]).astype(mx.uint32)


def digest(*arrays: mx.array | None) -> str:
    """Return shapes, dtypes and checksums of arrays as one short text."""
    return ", ".join("none" if a is None else f"{_kind(a)} {_bits(a)}" for a in arrays)


def digest_of_weights(model: Any) -> str:
    """Return a text that differs where structure, dtypes or a sample of the weights differ.

    All names, shapes and dtypes count, and the first `SAMPLE` values of each parameter.
    """
    flat: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    structure = hashlib.sha256()
    for name, x in flat:
        structure.update(f"{name} {_kind(x)}\n".encode())
    samples: Any = mx.stack([checksum(x.flatten()[:SAMPLE]) for _, x in flat]).tolist()
    values = hashlib.sha256(repr(samples).encode())
    dtypes = "/".join(sorted({str(x.dtype).removeprefix("mlx.core.") for _, x in flat}))
    loras = sum("lora" in name.lower() for name, _ in flat)
    return (
        f"{len(flat)} parameters ({loras} of LoRAs), {dtypes}, structure "
        f"{structure.hexdigest()[:12]}, values {values.hexdigest()[:12]}"
    )


def _kind(x: mx.array) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('mlx.core.')}"


def _bits(x: mx.array) -> str:
    words: Any = checksum(x).tolist()
    return "".join(f"{word:08x}" for word in words)


def _short(value: Any) -> str:
    text = ascii(str(value))  # from another machine: nothing in it may move a terminal's cursor
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
