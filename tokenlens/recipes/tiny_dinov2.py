"""DINOv2 on 64-pixel images, ViT of 6 blocks and 96 channels: on a laptop's CPU in tens of minutes.

Command:     tokenlens train tiny_dinov2 --data tinyimagenet100_64px.tar
Specialized: the same with --specialize paper
Data:        100 classes of Tiny ImageNet, 20,000 images of 64 pixels; any images will do, labels are not used
Hardware:    two CPU cores
Time:        expected 35 minutes: a step costs about four times a supervised one; not measured
Result:      not measured

As tiny_dino, with iBOT's loss of masked patches, KoLeo and Sinkhorn–Knopp: the loss that asks something of the
patches.
"""

from dataclasses import replace

from tokenlens.recipes.tiny_dino import RECIPE as TINY_DINO

RECIPE = replace(
    TINY_DINO,
    objective="dinov2",
    objective_options={**TINY_DINO.objective_options, "global_scale": (0.32, 1.0), "local_scale": (0.1, 0.32)},
    weight_decay_end=0.2,
)
