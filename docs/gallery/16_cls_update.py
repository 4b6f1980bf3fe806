"""Sources of the CLS update

Share of CLS itself, of the patches and of the output projection's bias in what attention adds to CLS, and the norm
of each part, block by block. In the last blocks the bias carries the update, and the patches' part, nearly as long,
opposes it.
"""

import tokenlens

analysis = tokenlens.analyze(
    "vit_small_patch14_dinov2",
    "sample",
    limit=24,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
    metrics=["cls_update"],
)
figure = analysis.plot("cls_update")
