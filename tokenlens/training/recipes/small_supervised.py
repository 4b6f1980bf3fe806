"""Train DeiT-III ViT-S/16 on 100 classes of ImageNet at 128 pixels, on one GPU in hours.

Command:     tokenlens train small_supervised --data imagenet100
Specialized: the same with --specialize paper
Data:        ImageNet-100: folders train/ and val/ of 100 classes, about 127,000 images
Hardware:    one GPU with 24 GB, 12 CPU cores to decode images
Time:        not measured; 38 million images, so 3.5 hours if the cores decode 3,000 images per second (the GPU alone:
             1 hour at 100 TFLOP/s)
Result:      not measured

Like deit3_small_imagenet1k, with fewer epochs, a batch of 1024 and a learning rate to match.
"""

from dataclasses import replace

from tokenlens.training.recipes.deit3_small_imagenet1k import RECIPE as DEIT3_SMALL

RECIPE = replace(
    DEIT3_SMALL, image_size=128, batch_size=1024, epochs=300, lr=3e-3, warmup=5 / 300, workers=12, diagnose_every=200
)
