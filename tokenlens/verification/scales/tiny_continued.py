"""Is a pretrained model improved by specializing it and training on, against training on without? On two CPU cores.

Command:   tokenlens verify --recipe tiny_continued --data DATA
           with other weights of the same model: --start RUN
Data:      as for tiny
Models:    tokenlens_tiny (ViT of 9 blocks and 128 channels at 64 pixels in patches of 8), distilled once from DINOv2-S,
           goes on with the same distillation for 94 steps of 128 images
Seeds:     3 of standard and of paper: six trainings from the same weights

Specializing changes no output, so that both continue from one function; the seeds differ in the order and the mirroring
of the images only, and their differences are smaller than between models that were trained from nothing. The start is
probed and analyzed once and stands beside the verdict, which is on the pairs alone: that both may be better or worse
than the start says what training on does, not what specialization does.

The learning rate is the recipe's own. The heads that map onto the teacher's features are no part of a saved model and
begin anew, and in so few steps they get only as far as the learning rate takes them: with half of it the loss stood at
1.18 after 71 of the 94 steps, from 1.58, where the heads of the model's own training had 1.09 (tried once, on a model
of this recipe). It rises over the first fifth of the steps, because AdamW has seen no gradient yet and new heads push
noise into weights that are good. Both variants bear the same; whether training on pays at all is what the start's
numbers are there for. Run once, seeds 1 and 2 ended 6 to 8 points of mean IoU below the start; seed 0 did not, because
it draws the heads that tokenlens_tiny was trained with. The model has seen the images before; what it is tested on it
has not.
"""

from dataclasses import replace

from tokenlens.training.recipes.tiny_distill import RECIPE as TINY_DISTILL
from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe

REGIME = Regime(
    recipe=replace(
        TINY_DISTILL,
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
        RegimeProbe("segmentation", 64),
        RegimeProbe("segmentation", 128),
        RegimeProbe("knn", 64, "cls", limit=8000),
    ),
    pace=Pace("one core of a virtual CPU", train=64, first=8, analyze=0.7, probes={"segmentation": 2, "knn": 1}),
)
