"""Eighty small models on one GPU, in slots of ten minutes: as many seeds as F3 and F5 need.

Command:   tokenlens verify --recipe gpu --data DATA --max-minutes 9
           the same again, until it says that all is done; or, as an array of jobs, one task of the plan each:
           tokenlens verify --recipe gpu --data DATA --task $SLURM_ARRAY_TASK_ID
Data:      as for tiny; a larger set with masks and more classes (ImageNet-100, ADE20K) in the same folders is better
Models:    ViT of 12 blocks and 192 channels (ViT-Ti) at 128 pixels in patches of 16, distilled from DINOv2-S
Seeds:     10 of each variant: standard, paper, the ablations of F5, and twins of the standard models as a control

The spread over seeds decides what can be seen, not the size of the model: ten pairs show a gain of one standard
deviation of their differences, three pairs only one of 3.3. So the models are as small as a good patch feature
allows, and there are many of them. A training is 1.2 million images: minutes on a GPU where the images are at hand
fast enough.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_distill import RECIPE as TINY_DISTILL
from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe

REGIME = Regime(
    recipe=replace(
        TINY_DISTILL,
        model_options={"patch_size": 16, "depth": 12, "embed_dim": 192, "num_heads": 3, "init_values": 0.1},
        # The teacher's grid at 112 pixels is the student's: 8 × 8 patches.
        objective_options={**TINY_DISTILL.objective_options, "teacher_image_size": 112},
        image_size=128,
        batch_size=256,
        epochs=60,
        precision="bf16-mixed",
        workers=8,
        diagnose_every=200,
        checkpoint_minutes=2,
    ),
    recipe_name="tiny_distill",
    variants=("standard", "paper", "twin", "norms", "qkv_first_third", "qkv_all", "mlp", "proj"),
    seeds=10,
    analyzed_images=500,
    teacher_file="dinov2_vits14.safetensors",
    probes=(
        RegimeProbe("segmentation", 128),
        RegimeProbe("segmentation", 224),
        RegimeProbe("knn", 128, "cls"),
        RegimeProbe("knn", 128, "patch_mean"),
        RegimeProbe("linear", 128, "cls"),
    ),
    pace=Pace("one GPU (a guess, not measured)", train=4000, first=3, analyze=0.3, probes={"segmentation": 0.7}),
)
