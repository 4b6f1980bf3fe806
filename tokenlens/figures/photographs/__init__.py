"""Maps of a recording drawn on its images, available as ``tokenlens.plot``."""

from tokenlens.figures.photographs.overlays import attention_overlay, cosine_to_patch, norm_map, pca_rgb

__all__ = ["attention_overlay", "cosine_to_patch", "norm_map", "pca_rgb"]
