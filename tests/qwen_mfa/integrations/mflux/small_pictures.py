"""Makes small pictures with mflux's own loops and prints their latents' digests, for ranks.

``small_pictures.py KIND …``: ``plain``, ``edit``, ``8-bit``, ``lora`` or ``guidance-1``; with
``+fused`` its blocks are cut at attention; with ``+heads`` the ranks of one pass share its
attention, without measuring whether that is faster.
Options of ``enable`` as JSON in ``QWEN_MFA_TEST_OPTIONS``; ``QWEN_MFA_TEST_ODD=1`` makes rank 1's
weights other ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

import mlx.core as mx
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mflux.models.qwen.variants.edit import qwen_image_edit
from mflux.models.qwen.variants.edit.qwen_image_edit import QwenImageEdit
from mflux.models.qwen.variants.txt2img import qwen_image
from mlx import nn

import qwen_mfa
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.distributed import heads
from tests.qwen_mfa.integrations.mflux.conftest import (
    SIDE,
    TEXT_DIM,
    config,
    draw,
    share_heads,
    transformer,
)
from tests.qwen_mfa.integrations.mflux.test_qwen_image import CHANNELS, DIM, pipeline, text_mask

STEPS = 2


def main(kinds: list[str]) -> None:
    """Enable, make one picture of each kind, print a digest of its latents."""
    share_heads()
    options = json.loads(os.environ.get("QWEN_MFA_TEST_OPTIONS", "{}"))
    for kind in kinds:
        name, *more = kind.split("+")
        switches = {**options}
        if "fused" in more:
            switches["fused_blocks"] = "on"
        if "heads" in more:
            switches["distributed"] = "heads"
        mflux.disable()
        mflux.enable(**switches)
        latents = picture(name)
        sys.stdout.write(f"{kind} {hashlib.sha256(bytes(memoryview(latents))).hexdigest()}\n")
    parts = qwen_mfa.stats().parts
    told = {outcome: n for (part, outcome), n in parts.items() if part == heads.PART}
    sys.stdout.write(f"fused {parts.get(('fused blocks', 'fused'), 0)}\n")
    sys.stdout.write(f"heads {json.dumps(told)}\n")
    together = mflux.step().together
    if together is not None:
        together.team.part()


def picture(kind: str) -> mx.array:
    """Make a picture with a model of its own; return its latents."""
    seen: list[mx.array] = []

    def decode(vae: None, latent: mx.array, tiling_config: None = None) -> mx.array:
        seen.append(latent)
        return mx.zeros((1, 3, 16 * SIDE, 16 * SIDE))

    qwen_image.VAEUtil.decode = decode
    qwen_image_edit.VAEUtil.decode = decode
    model = transformer()
    if kind == "8-bit":
        nn.quantize(model, bits=8)
    if kind == "lora":
        for number, block in enumerate(model.transformer_blocks):
            adapter = LoRALinear.from_linear(block.attn.to_q, r=4)
            adapter.lora_B = draw(40 + number, 4, DIM) * 0.1
            block.attn.to_q = adapter
    if os.environ.get("QWEN_MFA_TEST_ODD") and os.environ.get("MLX_RANK") == "1":
        model.img_in.bias = model.img_in.bias + 1
    image = pipeline(model)
    options: dict[str, Any] = {"seed": 5, "prompt": "a cat", "negative_prompt": "a dog"}
    options |= {"height": 16 * SIDE, "width": 16 * SIDE, "num_inference_steps": STEPS}
    options |= {"guidance": 1.0 if kind == "guidance-1" else 4.0}
    if kind == "edit":
        image = as_edit(image)
        options["image_paths"] = ["reference.png"]
    image.generate_image(**options)
    return seen[-1]


def as_edit(image: qwen_image.QwenImage) -> QwenImageEdit:
    """mflux's own loop for edits, around the same small model; pictures are drawn numbers."""
    edit = QwenImageEdit.__new__(QwenImageEdit)
    nn.Module.__init__(edit)
    for name in ("callbacks", "model_config", "transformer", "vae", "bits", "tiling_config"):
        setattr(edit, name, getattr(image, name))
    edit.lora_paths = edit.lora_scales = None
    side = 16 * SIDE
    embeds = draw(61, 1, 20, TEXT_DIM), text_mask(20), draw(62, 1, 5, TEXT_DIM), mx.ones((1, 5))
    object.__setattr__(edit, "_compute_dimensions", lambda **_: (config(), *(side,) * 4))
    object.__setattr__(edit, "_encode_prompts_with_images", lambda **_: embeds)
    qwen_image_edit.QwenEditUtil.create_image_conditioning_latents = staticmethod(
        lambda **_: (draw(8, 1, 24, CHANNELS), None, 4, 6, 1)
    )
    return edit


if __name__ == "__main__":
    main(sys.argv[1:])
