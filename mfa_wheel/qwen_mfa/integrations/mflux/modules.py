"""Which of mflux's modules bind MLX's attention by name, by model. Read from mflux 0.24.0."""

from __future__ import annotations

SUPPORTED = ((0, 23), (0, 25))  # from, up to but without
SUPPORTED_TEXT = "0.23 and 0.24"

QWEN_ATTENTION = "mflux.models.qwen.model.qwen_transformer.qwen_attention"
QWEN_BLOCK = "mflux.models.qwen.model.qwen_transformer.qwen_transformer_block"
QWEN_TRANSFORMER = "mflux.models.qwen.model.qwen_transformer.qwen_transformer"
QWEN_IMAGE = "mflux.models.qwen.variants.txt2img.qwen_image"
QWEN21_ATTENTION = "mflux.models.qwen21.model.qwen21_transformer.qwen21_attention"
QWEN21_TRANSFORMER = "mflux.models.qwen21.model.qwen21_transformer.qwen21_transformer"
FLUX_ATTENTION = "mflux.models.flux.model.flux_transformer.common.attention_utils"
FLUX2_DOUBLE_BLOCK = "mflux.models.flux2.model.flux2_transformer.transformer_block"
FLUX2_SINGLE_BLOCK = "mflux.models.flux2.model.flux2_transformer.single_transformer_block"
Z_IMAGE_ATTENTION = "mflux.models.z_image.model.z_image_transformer.attention"
Z_IMAGE_BLOCK = "mflux.models.z_image.model.z_image_transformer.transformer_block"

# Qwen-Image and Qwen-Image Edit share "qwen"; text encoders and VAEs that mflux shares between
# models are listed under their own names.
MODULES: dict[str, tuple[str, ...]] = {
    "qwen": (QWEN_ATTENTION,),
    "qwen21": (QWEN21_ATTENTION,),
    "depth_pro": ("mflux.models.depth_pro.model.dino_v2.attention",),
    "ernie_image": (
        "mflux.models.ernie_image.model.ernie_text_encoder.text_encoder",
        "mflux.models.ernie_image.model.ernie_transformer.attention",
    ),
    "fibo": (
        "mflux.models.fibo.model.fibo_text_encoder.smol_lm3_3b_attention",
        "mflux.models.fibo.model.fibo_transformer.fibo_joint_attention",
        "mflux.models.fibo.model.fibo_transformer.fibo_single_attention",
        "mflux.models.fibo.model.fibo_vae.common.wan_2_2_attention_block",
    ),
    "fibo2": ("mflux.models.fibo2.model.fibo2_transformer.fibo2_attention",),
    "flux": (
        "mflux.models.flux.model.flux_text_encoder.clip_encoder.clip_sdpa_attention",
        FLUX_ATTENTION,
        "mflux.models.flux.model.flux_vae.common.attention",
        "mflux.models.flux.model.siglip_vision_transformer.siglip_sdpa_attention",
    ),
    "flux2": (FLUX_ATTENTION, "mflux.models.flux2.model.flux2_vae.common.attention"),
    "ideogram4": (
        "mflux.models.ideogram4.model.ideogram4_text_encoder.attention",
        "mflux.models.ideogram4.model.ideogram4_transformer.attention",
    ),
    "krea2": ("mflux.models.krea2.model.krea2_transformer.attention",),
    "qwen3_vl": (
        "mflux.models.common_models.qwen3_vl.qwen3_vl_attention",
        "mflux.models.common_models.qwen3_vl.qwen3_vl_vision_attention",
    ),
    "z_image": (
        "mflux.models.z_image.model.z_image_text_encoder.attention",
        Z_IMAGE_ATTENTION,
        "mflux.models.z_image.model.z_image_vae.common.attention",
    ),
}
