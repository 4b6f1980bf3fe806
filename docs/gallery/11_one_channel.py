"""One channel carries the cosine

The CLS–patch cosine is a sum over 384 channels. Before norm1, from block 1 on, nearly all of it sits in a single one:
324 up to block 6, then 278. After the norm the cosine is negative, and in most blocks another channel is the largest.
The numbers on top name it.
"""

import matplotlib.pyplot as plt
import numpy as np

import tokenlens
from tokenlens.figures.style import STYLE

analysis = tokenlens.analyze(
    "vit_small_patch14_dinov2",
    "sample",
    metrics=["cosine_channels"],
    limit=24,
    checkpoint="dinov2_vits14.safetensors",
    img_size=224,
)
plt.rcParams.update(STYLE)
figure, axes = plt.subplots(1, 2, figsize=(6.7, 2.8), layout="constrained", sharey=True)
for ax, site in zip(axes, ("resid_pre", "norm1"), strict=True):
    parts = analysis.arrays[f"cosine_channels/{site}"].values  # (block, channel), adds up to the cosine
    blocks, largest = np.arange(len(parts)), np.abs(parts).argmax(1)
    ax.bar(blocks, parts.sum(1), width=0.8, color="0.85", label="cosine: sum over all channels")
    ax.bar(blocks, parts[blocks, largest], width=0.4, color="#D55E00", label="its largest channel")
    for block in blocks:
        ax.annotate(str(largest[block]), (block, 0.42), ha="center", rotation=90, fontsize=7, color="#D55E00")
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(title={"resid_pre": "before norm1", "norm1": "after norm1"}[site], xlabel="block", ylim=(-0.3, 0.5))
axes[0].set(ylabel="CLS–patch cosine")
axes[1].legend(loc="upper right", bbox_to_anchor=(1, 0.88), frameon=False)
