"""Maps of a recording drawn on its photographs: attention, cosines, principal components and norms."""

from tokenlens.figures.photographs.overlays import attention_overlay, cosine_to_patch, norm_map, pca_rgb

__all__ = ["attention_overlay", "cosine_to_patch", "norm_map", "pca_rgb"]
