"""Attention and entropy of every head

Share of attention between CLS and patches, and entropy of the attention of CLS, for each head of each block.
"""

import tokenlens

analysis = tokenlens.analyze(
    "vit_small_patch14_dinov2",
    "sample",
    limit=24,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
    metrics=["attention_mass", "attention_entropy"],
)
figure = analysis.plot("head_matrix")
