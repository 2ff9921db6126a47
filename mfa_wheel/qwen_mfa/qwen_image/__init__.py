"""Qwen-Image's joint attention block as `mlx.nn` modules, for those who do not use mflux."""

from qwen_mfa.qwen_image.attention import JointAttention, joint_mask
from qwen_mfa.qwen_image.block import TransformerBlock
from qwen_mfa.qwen_image.rope import RopeTables, rope_tables
from qwen_mfa.qwen_image.weights import assign, load_block

__all__ = [
    "JointAttention",
    "RopeTables",
    "TransformerBlock",
    "assign",
    "joint_mask",
    "load_block",
    "rope_tables",
]
