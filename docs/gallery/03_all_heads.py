"""All heads of a block

Attention of CLS to each patch in the six heads of the last block, and their mean; 1 is uniform attention. Under
each map is the share of its attention that CLS gives to patches.
"""

import tokenlens

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["q", "k"],
    limit=3,
    seed=2,
    checkpoint="dinov2_vits14.safetensors",
    img_size=448,
)
figure = tokenlens.plot.all_heads(recording, image=None, block=-1)
