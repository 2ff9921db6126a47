"""Which of mflux's blocks can be cut at their attention, and what their arguments are.

Read from mflux 0.23 and 0.24, and held against its sources before anything is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_mfa.integrations.mflux.modules import (
    FLUX2_DOUBLE_BLOCK,
    FLUX2_SINGLE_BLOCK,
    QWEN_BLOCK,
    Z_IMAGE_BLOCK,
)
from qwen_mfa.integrations.mflux.tracing import Opaque


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One class of blocks.

    Attributes:
        title: In words; empty for Qwen-Image, which this package is about.
        module: Where the class is.
        owner: The class.
        names: Its call's arguments.
        body: What its call's source must contain.
        streams: The arguments that go from block to block, the image's first.
        computed_from: All arguments whose precision the block computes in.
        handed_on: Arguments that are no arrays and that the block only hands on.
        masks: Boolean masks; where they hide nothing, the block goes without.
        modulated: Whether each block has its own modulation of the timestep's embedding.
        ahead: How many of them a picture runs at least, where nobody says so.

    """

    title: str = ""
    module: str
    owner: str
    names: tuple[str, ...]
    body: str
    streams: tuple[str, ...]
    computed_from: tuple[str, ...]
    handed_on: dict[str, Opaque] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    modulated: bool = False
    ahead: int = 0


def _opaque(*names: str) -> dict[str, Opaque]:
    return {name: Opaque(name) for name in names}


QWEN = Kind(
    module=QWEN_BLOCK,
    owner="QwenTransformerBlock",
    names=(
        *("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask"),
        *("text_embeddings", "image_rotary_emb", "block_idx", "cond_embeddings", "is_cond_token"),
    ),
    body="img_mod_params = self.img_mod_linear(self.img_mod_silu(text_embeddings))",
    streams=("hidden_states", "encoder_hidden_states"),
    computed_from=(
        *("hidden_states", "encoder_hidden_states", "text_embeddings", "cond_embeddings"),
    ),
    handed_on=_opaque("encoder_hidden_states_mask", "block_idx"),
    modulated=True,
)
_CACHE = ("kv_cache", "kv_cache_layer_idx")
OTHERS: dict[str, tuple[Kind, ...]] = {
    "flux2": (
        Kind(
            title="FLUX.2's double blocks",
            module=FLUX2_DOUBLE_BLOCK,
            owner="Flux2TransformerBlock",
            names=(
                *("hidden_states", "encoder_hidden_states", "temb_mod_params_img"),
                *("temb_mod_params_txt", "image_rotary_emb", *_CACHE),
            ),
            body="hidden_states = hidden_states + gate_msa * attn_output",
            streams=("hidden_states", "encoder_hidden_states"),
            computed_from=(
                *("hidden_states", "encoder_hidden_states"),
                *("temb_mod_params_img", "temb_mod_params_txt"),
            ),
            handed_on=_opaque("kv_cache_layer_idx"),
            ahead=4 * 5,  # a distilled model's steps; of the smallest
        ),
        Kind(
            title="FLUX.2's single blocks",
            module=FLUX2_SINGLE_BLOCK,
            owner="Flux2SingleTransformerBlock",
            names=("hidden_states", "temb_mod_params", "image_rotary_emb", *_CACHE),
            body="hidden_states = hidden_states + mod_gate * attn_output",
            streams=("hidden_states",),
            computed_from=("hidden_states", "temb_mod_params"),
            handed_on=_opaque("kv_cache_layer_idx"),
            ahead=4 * 20,
        ),
    ),
    "z_image": (
        Kind(
            title="Z-Image's blocks",
            module=Z_IMAGE_BLOCK,
            owner="ZImageTransformerBlock",
            names=("x", "attn_mask", "freqs_cis", "t_emb"),
            body="x = x + gate_msa * self.attention_norm2(attn_out)",
            streams=("x",),
            computed_from=("x", "t_emb"),
            masks=("attn_mask",),
            ahead=9 * 30,
        ),
    ),
}
