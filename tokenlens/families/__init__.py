"""Families of Vision Transformers: where the tokens are, and which module is behind each site. One file per family."""

from tokenlens.families._attention_output import AttentionOutput, Gate, output_of
from tokenlens.families._norms import NormParameters, SplitNorm, norm_parameters
from tokenlens.families._search import FoundViT, find_vit
from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    Pooling,
    Tap,
    as_height_width,
    families,
    find_family,
    grid_of,
    has_attention_bias,
    image_size_of,
    is_a,
    linear_paths,
    residual_taps,
)

__all__ = [
    "AttentionOutput",
    "BlockComponents",
    "BlockTaps",
    "Family",
    "FoundViT",
    "Gate",
    "NormParameters",
    "Pooling",
    "SplitNorm",
    "Tap",
    "as_height_width",
    "families",
    "find_family",
    "find_vit",
    "grid_of",
    "has_attention_bias",
    "image_size_of",
    "is_a",
    "linear_paths",
    "norm_parameters",
    "output_of",
    "residual_taps",
]
