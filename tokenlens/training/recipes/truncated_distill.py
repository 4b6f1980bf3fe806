"""Distill DINOv2-S into its own first four blocks at 112 pixels, on one CPU core in minutes.

Command:     tokenlens train truncated_distill --data tinyimagenet100_64px.tar \
             --checkpoint reports/verify_truncated/start/model.safetensors \
             --set objective_options.teacher_checkpoint=dinov2_vits14.safetensors
Specialized: the same with --specialize paper
Data:        images of Tiny ImageNet (64 pixels, enlarged); any images will do, labels are not used
Hardware:    one CPU core, 1 GB of disk for the teacher's features of 5,000 images
Time:        not measured here; a pilot took 7.7 minutes on one core with cached features of the teacher
Result:      not measured here; a pilot with one seed had mean IoU on MSRC at 112 pixels of 58.3 % (start 54.5 %)

The scale truncated writes the start, the first four blocks, the final norm and the embedding of DINOv2-S. CLS and
patches are close in it before norm1 and apart after it, before any training. The heads are fitted by ridge regression
on the start's features, because new random heads spoil it: mean IoU fell from 54.5 to 40 % with them (one seed).
"""

from tokenlens.training.recipe import Recipe

RECIPE = Recipe(
    objective="distill",
    model="vit_small_patch14_dinov2",
    model_options={"depth": 4, "init_values": 1e-5},
    objective_options={
        "teacher": "vit_small_patch14_dinov2",
        "teacher_image_size": 112,
        "loss": "smooth_l1",
        "fit_heads": 2000,
        "views": "flip",
        "cache": "~/.cache/tokenlens/features",
    },
    image_size=112,
    batch_size=32,
    steps=560,
    lr=1e-4,
    lr_vectors=5e-4,
    warmup=0.1,
    weight_decay=0.05,
    clip_grad=1.0,
    precision="bf16-mixed",
    log_every=20,
    diagnose_every=56,
)
