"""Kinds of Vision Transformers: where the tokens are and which module is behind each site. One file per kind."""

from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    NormParameters,
    Tap,
    as_pair,
    families,
    find_family,
    grid_of,
    image_size_of,
    is_a,
    linear_paths,
    norm_parameters,
)

__all__ = [
    "BlockComponents",
    "BlockTaps",
    "Family",
    "NormParameters",
    "Tap",
    "as_pair",
    "families",
    "find_family",
    "grid_of",
    "image_size_of",
    "is_a",
    "linear_paths",
    "norm_parameters",
]
