"""Principal components over depth

The first principal component of an image's patches separates the foreground; the first three components of the
foreground are shown as red, green and blue. Early blocks encode places and edges, late blocks parts of objects.
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
figure = tokenlens.plot.pca_strip(recording, image=None)
