"""Golden vectors of the reference implementation: inputs redrawn here, outputs from the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True, kw_only=True)
class Golden:
    heads: int
    head_dim: int
    dim: int
    grid: tuple[int, int, int]
    text_tokens: int
    weights: dict[str, mx.array]
    image: mx.array
    text: mx.array
    time: mx.array
    text_mask: mx.array
    outputs: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden() -> Golden:
    recipe = json.loads((DATA / "qwen_block_a.json").read_text(encoding="utf-8"))
    draws = np.random.RandomState(recipe["seed"])

    def draw(shape: list[int], law: str) -> mx.array:
        offset, factor = {"0.05*N": (0.0, 0.05), "1 + 0.1*N": (1.0, 0.1), "1.0*N": (0.0, 1.0)}[law]
        return mx.array((offset + factor * draws.standard_normal(shape)).astype(np.float32))

    weights = {name: draw(shape, law) for name, shape, law in recipe["parameters"]}
    batch, dim, text_tokens = recipe["batch"], recipe["dim"], recipe["txt_tokens"]
    grid = tuple(recipe["img_grid"])
    with np.load(DATA / "qwen_block_a.npz") as file:
        outputs = dict(file)
    return Golden(
        heads=recipe["heads"],
        head_dim=recipe["head_dim"],
        dim=dim,
        grid=grid,
        text_tokens=text_tokens,
        weights=weights,
        image=draw([batch, int(np.prod(grid)), dim], "1.0*N"),
        text=draw([batch, text_tokens, dim], "1.0*N"),
        time=draw([batch, dim], "1.0*N"),
        text_mask=mx.array(outputs["mask"]),
        outputs=outputs,
    )
