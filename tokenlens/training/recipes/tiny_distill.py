r"""Distill DINOv2-S on 64-pixel images, into a ViT of 9 blocks and 128 channels, on a laptop's CPU in under an hour.

Command:     tokenlens train tiny_distill --data tinyimagenet100_64px.tar \
             --set objective_options.teacher_checkpoint=dinov2_vits14.safetensors
Specialized: the same with --specialize paper
Data:        100 classes of Tiny ImageNet, 20,000 images of 64 pixels; any images will do, labels are not used
Hardware:    two CPU cores, 1.2 GB of disk for the teacher's features
Time:        not measured in full; measured 64 images/s on one core with cached features of the teacher, 15 without
Result:      with epochs=12 on 8,000 of the images (41 minutes on one core, features included), one seed: k-NN 20.5 %
             (95 % interval 18.9 to 22.1, n = 2,500; 5.5 % untrained), mIoU on MSRC at 128 pixels 43.1 % (39.5 to 46.1,
             n = 235; 15.2 % untrained)

The teacher sees the images at 112 pixels, so that its patch grid (8 × 8) equals the student's. Views are the whole
image or its mirror image, so its features are computed once and kept for every run on the same images. Without --set
the teacher has the published weights of timm's vit_small_patch14_dinov2.
"""

from tokenlens.training.recipe import Recipe

RECIPE = Recipe(
    objective="distill",
    model="vit_tiny_patch16_224",
    model_options={"patch_size": 8, "depth": 9, "embed_dim": 128, "num_heads": 4, "init_values": 0.1},
    objective_options={
        "teacher": "vit_small_patch14_dinov2",
        "teacher_image_size": 112,
        "views": "flip",
        "cache": "~/.cache/tokenlens/features",
    },
    image_size=64,
    batch_size=128,
    epochs=16,
    lr=1e-3,
    warmup=0.1,
    weight_decay=0.05,
    clip_grad=1.0,
    log_every=20,
    diagnose_every=50,
)
