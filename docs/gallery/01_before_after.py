"""CLS and patches, before and after a norm

Cosine of CLS to each patch before norm1 (upper rows) and after it (lower rows), in six blocks. Before the norm most
patches point the way CLS does (red); after it hardly any does (white) or they point away (blue). The number under
each map is the mean over its patches; all maps share one scale.
"""

import tokenlens

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["resid_pre", "norm1"],
    limit=3,
    seed=2,
    checkpoint="dinov2_vits14.safetensors",
    img_size=448,
)
figure = tokenlens.plot.before_after(recording, image=[1, 2])
