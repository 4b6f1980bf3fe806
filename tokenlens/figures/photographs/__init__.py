"""Maps of a recording or an intervention drawn beside its images, available as ``tokenlens.plot``."""

from tokenlens.figures.photographs.correspondence import correspondence
from tokenlens.figures.photographs.grids import draw_maps
from tokenlens.figures.photographs.overlays import attention_overlay, cosine_to_patch, norm_map, pca_rgb
from tokenlens.figures.photographs.replaced import replaced_patches
from tokenlens.figures.photographs.strips import all_heads, before_after, cosine_strip, norm_strip, pca_strip

__all__ = [
    "all_heads",
    "attention_overlay",
    "before_after",
    "correspondence",
    "cosine_strip",
    "cosine_to_patch",
    "draw_maps",
    "norm_map",
    "norm_strip",
    "pca_rgb",
    "pca_strip",
    "replaced_patches",
]
