"""Trained against random weights

The same maps for DINOv2 and for its architecture with random weights, where no norm changes the cosine: what
separates CLS from the patches is learned.
"""

from dataclasses import replace

import tokenlens
from tokenlens.overlays.before_after import before_after_maps

OPTIONS = {"sites": ["resid_pre", "norm1"], "limit": 3, "seed": 2, "img_size": 448}
NAME = "vit_small_patch14_dinov2"
trained = tokenlens.record(NAME, "sample", checkpoint="dinov2_vits14.safetensors", **OPTIONS)
untrained = tokenlens.record(NAME, "sample", pretrained=False, **OPTIONS)
rows = {"trained": before_after_maps(trained, image=1), "random weights": before_after_maps(untrained, image=1)}
figure = tokenlens.plot.draw_maps([replace(maps, image=name) for name, maps in rows.items()])
