"""Specialize a pretrained model in which F1 holds: six blocks of DINOv2-S, eighty models on a GPU in short slots.

Command:   tokenlens verify --scale truncated_gpu --data DATA --max-minutes 8
           Repeat until it reports that every task is done.
Data:      as for truncated; all 20,000 images
Models:    the first six blocks of DINOv2 ViT-S/14 at 112 pixels, distilled from all twelve for 1,000 steps of 256
Seeds:     10 of each variant

The size up of the scale truncated. Views of the images (3 GB) and the teacher's features (2 GB) are computed at the
start of each slot and stay on the device; reading and decoding images would take longer than the training.
"""

from dataclasses import replace

from tokenlens.verification.scales.base import Pace, ScaleProbe
from tokenlens.verification.scales.truncated import SCALE as TRUNCATED

RECIPE = TRUNCATED.recipe

SCALE = replace(
    TRUNCATED,
    recipe=replace(
        RECIPE,
        model_options={**RECIPE.model_options, "depth": 6},
        objective_options={**RECIPE.objective_options, "fit_heads": 5000, "cache": "device"},
        batch_size=256,
        steps=1000,
        preload=True,
        workers=8,
        log_every=50,
        diagnose_every=200,
        checkpoint_minutes=2,
    ),
    variants=("standard", "paper", "twin", "norms", "qkv_first_third", "qkv_all", "mlp", "proj"),
    seeds=10,
    ablation_seeds=None,
    start_blocks=6,
    train_images=None,
    analyzed_images=500,
    probes=(*TRUNCATED.probes[:4], ScaleProbe("knn", 112, "cls"), ScaleProbe("linear", 112, "cls")),
    pace=Pace("one GPU (a guess, not measured)", train=8000, first=1, analyze=0.3, probes={"segmentation": 0.5}),
)
