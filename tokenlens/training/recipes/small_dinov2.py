"""Train DINOv2 ViT-S/16 on 100 classes of ImageNet at 128 pixels, on one GPU in hours.

Command:     tokenlens train small_dinov2 --data imagenet100
Specialized: the same with --specialize paper
Bias:        the same with --set attention_bias=true
Data:        ImageNet-100, about 127,000 images; any images will do, labels are not used
Hardware:    one GPU with 24 GB, 12 CPU cores to decode and crop images
Time:        not measured; 13 million images with ten crops each, so about 5 hours if the cores prepare 700 images
             per second
Result:      not measured

Like small_dino, with the losses of DINOv2 and LayerScale at 1e-5. The heads have 16,384 prototypes, because a batch of
256 images is too small to spread over 65,536 by Sinkhorn–Knopp.
"""

from dataclasses import replace

from tokenlens.training.recipes.small_dino import RECIPE as SMALL_DINO

RECIPE = replace(
    SMALL_DINO,
    objective="dinov2",
    model_options={**SMALL_DINO.model_options, "init_values": 1e-5},
    objective_options={"local_size": 64, "local_crops": 8, "prototypes": 16384, "momentum": 0.992},
    weight_decay_end=0.2,
)
