"""Specialize a pretrained model in which F1 holds: the first four blocks of DINOv2-S, on one CPU core in hours.

Command:   tokenlens verify --scale truncated --data DATA
           Run it again to resume; with --max-minutes it stops by itself.
Data:      as for tiny; DATA/weights/dinov2_vits14.safetensors is the teacher and the start
Models:    the first four blocks of DINOv2 ViT-S/14 (384 channels) at 112 pixels, distilled from all twelve: smooth-L1
           on standardized features, heads fitted by ridge regression, 560 steps of 32 images
Seeds:     8 of standard and paper, 5 of norms, qkv_all, mlp, proj and of a twin of the standard model

In the start, CLS–patch cosine falls across norm1 in three of four blocks, before any training (fall .38). So this scale
has the effect that specialization is about, and it asks whether specializing a *pretrained* model improves it. It says
nothing about training a specialized model from scratch.

Every training starts from the same weights. Seeds differ in the order and mirroring of the images, in all variants
alike. Segmentation is probed at two resolutions with two draws each and judged by the mean.
"""

from tokenlens.training.recipes.truncated_distill import RECIPE
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe

SCALE = Scale(
    recipe=RECIPE,
    recipe_name="truncated_distill",
    variants=("standard", "paper", "norms", "qkv_all", "mlp", "proj", "twin"),
    seeds=8,
    ablation_seeds=5,
    start="teacher",
    start_blocks=4,
    train_images=5000,
    analyzed_images=200,
    teacher_file="dinov2_vits14.safetensors",
    probes=(
        ScaleProbe("segmentation", 112),
        ScaleProbe("segmentation", 112, draw=1),
        ScaleProbe("segmentation", 224),
        ScaleProbe("segmentation", 224, draw=1),
        ScaleProbe("knn", 112, "cls", limit=4000),
    ),
    pace=Pace("one core of a virtual CPU", train=39, first=6, analyze=0.5, probes={"segmentation": 1.5, "knn": 1.5}),
)
