"""Test whether specializing a pretrained model improves it, compared with training on without it; on two CPU cores.

Command:   tokenlens verify --scale tiny_continued --data DATA
           with other weights of the same model: --start RUN
Data:      as for tiny
Models:    tokenlens_tiny (ViT with 9 blocks and 128 channels at 64 pixels in patches of 8), distilled from DINOv2-S;
           the same distillation is continued for 94 steps of 128 images
Seeds:     3 of standard and of paper: six trainings from the same weights

Specializing changes no output, so both variants start as one function. Seeds differ only in the order and mirroring of
the images, and their results differ less than those of models trained from scratch. The start is probed and analyzed
once and reported next to the verdict, which compares matched seeds only: whether both end better or worse than the
start is an effect of training on, not of specialization.

The heads that map onto the teacher's features are not part of a saved model. They are fitted to the start by ridge
regression, so that all seeds begin with the same ones. In the committed run they were drawn by seed: seed 0 drew those
that tokenlens_tiny was trained with, and seeds 1 and 2 ended 6 to 8 points of mean IoU below the start. The learning
rate rises over the first fifth of the steps, because AdamW has seen no gradient yet. The model has seen the training
images before, but not those of the probes' test splits.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_distill import RECIPE as TINY_DISTILL
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe

SCALE = Scale(
    recipe=replace(
        TINY_DISTILL,
        objective_options={**TINY_DISTILL.objective_options, "fit_heads": 2000},
        epochs=3,
        warmup=0.2,
        log_every=5,
        diagnose_every=10,
        checkpoint_minutes=2,
    ),
    recipe_name="tiny_distill",
    start="tokenlens_tiny",
    train_images=4000,
    analyzed_images=200,
    teacher_file="dinov2_vits14.safetensors",
    probes=(
        ScaleProbe("segmentation", 64),
        ScaleProbe("segmentation", 128),
        ScaleProbe("knn", 64, "cls", limit=8000),
    ),
    pace=Pace("one core of a virtual CPU", train=64, first=8, analyze=0.7, probes={"segmentation": 2, "knn": 1}),
)
