"""Six small models on two CPU cores in under 90 minutes: what can be seen of F3 there, and its power.

Command:   tokenlens verify --recipe tiny --data DATA
Data:      DATA/classification: labelled images of 64 pixels (100 classes of Tiny ImageNet); DATA/segmentation: images
           with masks (MSRC v2); DATA/photos: photographs to analyze; DATA/weights/dinov2_vits14.safetensors: the
           teacher
Models:    ViT of 6 blocks and 96 channels at 64 pixels in patches of 8 (0.7 M parameters), distilled from DINOv2-S
Seeds:     3 of standard and of paper: six trainings

Distillation of DINOv2's CLS and patches is the cheapest way to patch features that a linear segmentation can use:
labels alone teach so small a model little about places. The teacher sees the image or its mirror, so that its
features are computed once for all trainings. Segmentation is probed at two resolutions, because one alone moves by
points from seed to seed; their mean decides.

The mean IoU of such models differs by about a point between seeds, so that three of them show a gain only if it is
several points large (the report says how large), and F3 will most often be inconclusive here. More seeds
(``--seeds 10``) are what helps.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_distill import RECIPE as TINY_DISTILL
from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe

REGIME = Regime(
    recipe=replace(
        TINY_DISTILL,
        model_options={**TINY_DISTILL.model_options, "depth": 6, "embed_dim": 96, "num_heads": 3},
        epochs=10,
        checkpoint_minutes=2,
    ),
    recipe_name="tiny_distill",
    train_images=4000,
    analyzed_images=200,
    teacher_file="dinov2_vits14.safetensors",
    probes=(
        RegimeProbe("segmentation", 64),
        RegimeProbe("segmentation", 128),
        RegimeProbe("knn", 64, "cls", limit=8000),
        RegimeProbe("knn", 64, "patch_mean", limit=8000),
    ),
    pace=Pace("one core of a virtual CPU", train=150, first=8, analyze=0.5, probes={"segmentation": 1.2, "knn": 0.6}),
)
