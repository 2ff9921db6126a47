"""mflux's own ``mflux-generate-qwen``, but with a small random model and no VAE: a stand-in model.

Everything else (arguments, schedule, guidance, steps, writing the picture) is mflux's.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import mlx.core as mx
from mflux.models.qwen.cli import qwen_image_generate
from mflux.models.qwen.variants.txt2img import qwen_image

from tests.qwen_mfa.integrations.mflux.conftest import share_heads, transformer
from tests.qwen_mfa.integrations.mflux.test_qwen_image import pipeline

if TYPE_CHECKING:
    import argparse


def load(args: argparse.Namespace) -> qwen_image.QwenImage:
    image = pipeline(transformer())
    # A picture of each step goes there by itself.
    image.vae = SimpleNamespace(decode=partial(decode, None))
    return image


def decode(vae: None, latent: mx.array, tiling_config: None = None) -> mx.array:
    """Show the latents' first three channels, eight pixels each way."""
    return mx.repeat(mx.repeat(latent.reshape(1, 16, *latent.shape[-2:])[:, :3], 8, 2), 8, 3)


if __name__ == "__main__":
    share_heads()
    qwen_image_generate.QwenImageCommand.load = load
    qwen_image.VAEUtil.decode = decode
    qwen_image_generate.main()
