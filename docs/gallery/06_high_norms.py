"""Patches with a high norm

Norm of each patch over the median of its image, in the last six blocks. Patches above three times the median are
outlined: in this small model they are few, mostly in the background, and gone after the last block.
"""

import tokenlens

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["resid_post"],
    limit=3,
    seed=2,
    checkpoint="dinov2_vits14.safetensors",
    img_size=448,
)
figure = tokenlens.plot.norm_strip(recording, image=None, blocks="6-11")
