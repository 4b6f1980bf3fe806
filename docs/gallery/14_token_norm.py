"""Norms of CLS and patches

Mean norm of CLS and of the patches over the blocks, the largest patch of an image over its median, and the share of
high-norm patches by two rules.
"""

import tokenlens

analysis = tokenlens.analyze(
    "vit_small_patch14_dinov2",
    "sample",
    limit=24,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
    metrics=["token_norm"],
)
figure = analysis.plot("token_norm")
