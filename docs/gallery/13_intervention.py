"""Patches with CLS replaced

CLS is replaced after one block, and the model runs on. Cosine of the final tokens to those of the untouched pass,
against the block of the replacement; 1 means that nothing changed. Zeros, which the model has never seen, wreck the
patches; the mean CLS, or that of another image, hardly changes them.
"""

import tokenlens

found = tokenlens.intervene(
    "vit_small_patch14_dinov2",
    "sample",
    replace="cls",
    by=["zero", "mean", "shuffle"],
    blocks=[0, 2, 4, 6, 8, 10, 11],
    limit=12,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
)
figure = found.plot("intervention_effect")
