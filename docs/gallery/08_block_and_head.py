"""Every head of every block

A poster: attention of CLS to the patches of one photograph, a row per block and a column per head. Heads with the
same number in different blocks have nothing to do with each other.
"""

from dataclasses import replace

import numpy as np

import tokenlens
from tokenlens.overlays.block_maps import attention_maps

recording = tokenlens.record(
    "vit_small_patch14_dinov2",
    "sample",
    sites=["q", "k"],
    limit=3,
    seed=2,
    checkpoint="dinov2_vits14.safetensors",
    img_size=448,
)
blocks = [attention_maps(recording, image=2, block=block) for block in recording.blocks]
poster = replace(
    blocks[0],
    maps=np.concatenate([block.maps for block in blocks]),
    titles=blocks[0].titles * len(blocks),
    columns=len(blocks[0].maps),
    rows=tuple(f"block {block}" for block in recording.blocks),
    captions=(),
    note="attention of CLS",
)
figure = tokenlens.plot.draw_maps(poster)
