"""Correspondence between images

Name patches in one image, and find the nearest patch of another, by cosine: nose and collar are found. The ribbons
are not in the other crop; there is always a nearest patch, and its cosine says how near.
"""

import tokenlens

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["resid_post"],
    limit=6,
    seed=12,
    checkpoint="dinov2_vits14.safetensors",
    img_size=448,
)
figure = tokenlens.plot.correspondence(recording, [(6, 15), (16, 14), (27, 6)], image=2, others=[5])
