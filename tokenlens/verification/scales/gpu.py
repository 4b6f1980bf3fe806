"""Eighty small models on one GPU, in slots of ten minutes: enough seeds for F3 and F5.

Command:   tokenlens verify --scale gpu --data DATA --max-minutes 9
           Repeat until it reports that every task is done; or run one task of the plan per job of an array:
           tokenlens verify --scale gpu --data DATA --task $SLURM_ARRAY_TASK_ID
Data:      as for tiny; larger data in the same folders are better (ImageNet-100, ADE20K)
Models:    ViT with 12 blocks and 192 channels (ViT-Ti) at 128 pixels in patches of 16, distilled from DINOv2-S
Seeds:     10 of each variant: standard, paper, the ablations of F5, and twins of the standard models as a control

The spread over seeds, not the size of the model, limits what can be detected: ten matched seeds reveal a gain of one
standard deviation of their differences, three only one of 3.3. So the models are as small as good patch features
allow, and there are many of them. A training sees 1.2 million images: minutes on a GPU that is fed fast enough.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_distill import RECIPE as TINY_DISTILL
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe

SCALE = Scale(
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
        ScaleProbe("segmentation", 128),
        ScaleProbe("segmentation", 224),
        ScaleProbe("knn", 128, "cls"),
        ScaleProbe("knn", 128, "patch_mean"),
        ScaleProbe("linear", 128, "cls"),
    ),
    pace=Pace("one GPU (a guess, not measured)", train=4000, first=3, analyze=0.3, probes={"segmentation": 0.7}),
)
