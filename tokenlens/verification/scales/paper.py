"""The paper's scale: ViT-B/14 by DINOv2 on ImageNet-22k, standard and specialized, for a cluster.

Command:   tokenlens verify --scale paper --data DATA --plan
           prints every task with its command: trainings under torchrun or SLURM, one folder each.
           Then run one task of the plan per job of an array:
           tokenlens verify --scale paper --data DATA --task $SLURM_ARRAY_TASK_ID
           Finally run it without --task to judge and write the report.
Data:      DATA/classification: ImageNet-22k to train on and to classify; DATA/segmentation: ADE20K; DATA/photos
Models:    as recipe dinov2_base_imagenet22k, 625,000 steps on 48 GPUs
Seeds:     3 of standard, paper and norms; the paper reports one of each

There is no need to train all of it: --from RUN … judges existing trainings, and trainings of other sizes and objectives
join the same verdict (F6) that way.
"""

from tokenlens.training.recipes.dinov2_base_imagenet22k import RECIPE
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe

SCALE = Scale(
    recipe=RECIPE,
    recipe_name="dinov2_base_imagenet22k",
    variants=("standard", "paper", "norms"),
    analyzed_images=4096,
    probes=(
        ScaleProbe("segmentation", 224),
        ScaleProbe("segmentation", 518),
        ScaleProbe("knn", 224, "cls"),
        ScaleProbe("linear", 224, "cls"),
        ScaleProbe("linear", 224, "both"),
    ),
    pace=Pace(
        "48 A100 for the trainings, one for the rest (scaled from the authors' ViT-L, not measured)",
        train=12_000,
        analyze=5,
        probes={"segmentation": 60, "knn": 120, "linear": 180},
    ),
)
