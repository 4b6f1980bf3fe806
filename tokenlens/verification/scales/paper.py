"""The paper's scale: ViT-B/14 by DINOv2 on ImageNet-22k, standard and specialized, for a cluster.

Command:   tokenlens verify --recipe paper --data DATA --plan
           prints every task with its command: trainings under torchrun or SLURM, one folder each;
           then, one task of the plan for each job of an array:
           tokenlens verify --recipe paper --data DATA --task $SLURM_ARRAY_TASK_ID
           and at the end the same without --task, which judges and writes the report
Data:      DATA/classification: ImageNet-22k to train on and to classify; DATA/segmentation: ADE20K; DATA/photos
Models:    as recipe dinov2_base_imagenet22k, 625,000 steps on 48 GPUs
Seeds:     3 of standard, paper and norms; the paper reports one of each

Nobody needs to train all of it here: trainings that exist are judged with --from RUN …, and other sizes and objectives
join the same verdict (F6) that way.
"""

from tokenlens.training.recipes.dinov2_base_imagenet22k import RECIPE
from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe

REGIME = Regime(
    recipe=RECIPE,
    recipe_name="dinov2_base_imagenet22k",
    variants=("standard", "paper", "norms"),
    analyzed_images=4096,
    probes=(
        RegimeProbe("segmentation", 224),
        RegimeProbe("segmentation", 518),
        RegimeProbe("knn", 224, "cls"),
        RegimeProbe("linear", 224, "cls"),
        RegimeProbe("linear", 224, "both"),
    ),
    pace=Pace(
        "48 A100 for the trainings, one for the rest (scaled from the authors' ViT-L, not measured)",
        train=12_000,
        analyze=5,
        probes={"segmentation": 60, "knn": 120, "linear": 180},
    ),
)
