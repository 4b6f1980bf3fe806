"""Every patch, before against after

A dot per patch: its cosine to CLS before norm1 and after it. Below the diagonal a patch has moved away from CLS.
"""

import matplotlib.pyplot as plt

import tokenlens
from tokenlens.figures.style import STYLE
from tokenlens.overlays.before_after import before_after_maps

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["resid_pre", "norm1"],
    limit=3,
    seed=2,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
)
plt.rcParams.update(STYLE)
figure, axes = plt.subplots(1, 3, figsize=(6.7, 2.6), layout="constrained", sharex=True, sharey=True)
for ax, block in zip(axes, (1, 7, 11), strict=True):
    ax.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
    for image, name in enumerate(recording.names):
        before, after = before_after_maps(recording, image, block).maps
        ax.scatter(before, after, s=5, alpha=0.5, linewidths=0, label=name.partition("-")[0])
    ax.set(title=f"block {block}", xlabel="cosine to CLS before norm1", xlim=(-0.5, 0.7), ylim=(-0.5, 0.7), aspect=1)
axes[0].set_ylabel("cosine to CLS after norm1")
axes[0].legend(loc="upper left", markerscale=2, frameon=False)
