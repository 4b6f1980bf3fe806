"""Train DINO ViT-S/16 on 100 classes of ImageNet at 128 pixels, on one GPU in hours.

Command:     tokenlens train small_dino --data imagenet100
Specialized: the same with --specialize paper
Data:        ImageNet-100, about 127,000 images; any images will do, labels are not used
Hardware:    one GPU with 24 GB, 12 CPU cores to decode and crop images
Time:        not measured; 13 million images with ten crops each, so about 5 hours if the cores prepare 700 images
             per second
Result:      not measured

Settings: Caron et al., arXiv 2104.14294, with 2 crops of 128 and 8 of 64 pixels instead of 224 and 96, and a batch
of 256.
"""

from tokenlens.training.recipe import Recipe

RECIPE = Recipe(
    objective="dino",
    model="vit_small_patch16_224",
    model_options={"drop_path_rate": 0.1, "dynamic_img_size": True},
    objective_options={"local_size": 64, "local_crops": 8, "momentum": 0.996},
    image_size=128,
    batch_size=256,
    epochs=100,
    lr=5e-4,
    warmup=0.1,
    weight_decay=0.04,
    weight_decay_end=0.4,
    clip_grad=3.0,
    precision="bf16-mixed",
    workers=12,
    log_every=50,
    diagnose_every=500,
)
