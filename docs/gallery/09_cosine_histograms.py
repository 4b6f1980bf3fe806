"""Cosines as a ridgeline

How the cosines of single patches are distributed before norm1 (dashed) and after it (filled), block by block, in the
first four images of the analysis. A mean hides whether all patches move or some; here nearly all of them do.
"""

import tokenlens

analysis = tokenlens.analyze(
    "vit_small_patch14_dinov2", "sample", limit=24, checkpoint="dinov2_vits14.safetensors", img_size=224
)
figure = analysis.plot("cosine_histograms")
