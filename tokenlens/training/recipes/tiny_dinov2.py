"""Train DINOv2 on 64-pixel images, with a ViT of 6 blocks and 96 channels, on a laptop's CPU in tens of minutes.

Command:     tokenlens train tiny_dinov2 --data tinyimagenet100_64px.tar
Specialized: the same with --specialize paper
Bias:        the same with --set attention_bias=true
Data:        100 classes of Tiny ImageNet, 20,000 images of 64 pixels; any images will do, labels are not used
Hardware:    two CPU cores
Time:        expected 65 minutes at 52 images/s; measured 38 images/s on one core
Result:      with epochs=2 (18 minutes on one core), one seed: k-NN 8.0 % (95 % interval 7.0 to 9.1, n = 2,500; 5.7 %
             untrained), mIoU on MSRC at 128 pixels 21.3 % (19.5 to 22.8, n = 235; 13.1 % untrained)

Like tiny_dino, with iBOT's loss of masked patches, KoLeo and Sinkhorn–Knopp, so that patches have a loss, too.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_dino import RECIPE as TINY_DINO

RECIPE = replace(
    TINY_DINO,
    objective="dinov2",
    objective_options={**TINY_DINO.objective_options, "global_scale": (0.32, 1.0), "local_scale": (0.1, 0.32)},
    weight_decay_end=0.2,
)
