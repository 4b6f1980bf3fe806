"""explore, in Jupyter

Click a patch or press a key: cosines before and after a norm, attention, principal components, norms, the nearest
patch in another image, and all heads follow. The animation goes through blocks for CLS, then through patches.
"""

import tokenlens

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    limit=6,
    seed=12,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
)
view = tokenlens.explore(recording)
steps = [{"image": 2, "block": block, "token": "cls", "other": 5} for block in (0, 3, 6, 9, 11)]
steps += [{"token": patch} for patch in ((3, 7), (8, 7), (13, 3), (6, 1))]
for step in steps:
    view.select(**step)
