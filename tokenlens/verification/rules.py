"""Thresholds, titles and rules of the findings F3 to F6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenlens.statistics.seed_effects import MIN_SEEDS

CLAIMED_GAIN = 2.0
"""The smallest gain that the paper claims, in points of mIoU."""

MIN_GAIN = CLAIMED_GAIN / 2
"""A gain whose whole interval lies below this contradicts the paper's claim."""

MAX_LOSS = 1.0
"""Points of accuracy that may be lost while classification still counts as kept."""

MIN_DISTANCE = 0.02
"""The smallest relative distance at which two sets of weights have parted: five roundings of bfloat16."""

LEVEL = 0.05
"""Level of significance."""

PARAMETERS, PARAMETERS_TOLERANCE = 8.0, 0.5
"""F4: per cent more parameters in ViT-B/16."""

NEGLIGIBLE = 0.1
"""F4: per cent; an upper limit for the norms' share of the parameters and for the change of the FLOPs."""

COSTS = ("model", "preset", "parameters", "added_parameters", "flops", "added_flops")
"""Columns of the table that F4 is judged on."""

TITLES = {
    "F3": "Specialization improves dense prediction and keeps classification",
    "F4": "It costs few parameters and no FLOPs",
    "F5": "The norms bring most of the gain, QKV helps early, MLP and output projection do not",
    "F6": "It holds for other sizes and objectives",
}

_PREMISES = (
    "Not applicable unless norm1 of more than half of the standard models separates CLS from patches (F1(a)), the two "
    f"sets of weights have parted (mean relative distance of at least {MIN_DISTANCE:g} in one component, biases left "
    "out), both variants end at or above the start, if there was one, and no seed has better heads than another"
)
_SCORES = (
    "A model's score is its mean IoU averaged over the probed resolutions and draws; differences are taken between "
    "models of the same seed, and their 95 % interval covers seeds and test images (Student's t with the variance over "
    "seeds and that of a bootstrap of the images)"
)
RULES = {
    "F3": (
        f"{_PREMISES}. {_SCORES}. Supported: the interval lies above 0 and not wholly below {MIN_GAIN:g} point, and "
        "the interval of the difference of accuracy (of CLS where it was probed) does not reach below "
        f"−{MAX_LOSS:g} point. Not supported: the interval lies wholly below {MIN_GAIN:g} point, half of the smallest "
        f"gain of {CLAIMED_GAIN:g} that the paper claims, or that of the accuracy wholly below −{MAX_LOSS:g}. "
        f"Inconclusive otherwise, and with fewer than {MIN_SEEDS} seeds. Two standard models of different seeds come "
        "out supported in at most 2.5 % of cases. The smallest detectable gain is the true gain which 80 % of "
        "simulated experiments with this spread call supported, if accuracy does not change. Training losses are "
        "reported and do not decide."
    ),
    "F4": (
        "Counted on the architecture, without training. Supported: the paper's specialization of ViT-B/16 adds "
        f"{PARAMETERS:g} ± {PARAMETERS_TOLERANCE:g} % parameters, the norms alone add less than {NEGLIGIBLE:g} %, and "
        f"neither changes the FLOPs by more than {NEGLIGIBLE:g} %. Not supported: otherwise."
    ),
    "F5": (
        f"Not applicable where F3 is not. {_SCORES}. Judged only if the interval of paper's gain lies above 0. Five "
        "claims, each a contrast of matched seeds: norms alone gain more than half of paper's gain; paper gains "
        "against norms alone; and QKV in all blocks instead of the first third, MLP, and attention's output projection "
        "each add less than half of paper's gain. A claim holds or is refuted, by the sign of its contrast, if q < "
        f"{LEVEL:g} (Benjamini and Hochberg over the claims); it is open otherwise, with fewer than {MIN_SEEDS} seeds, "
        "and if the sets of weights of its variant have not parted. Supported: all claims hold. Not supported: one is "
        "refuted. Else inconclusive."
    ),
    "F6": (
        "F3 in each setting (objective, model, size) to which it applies. Supported: F3 is supported in all of at "
        "least two settings; requiring all of them makes a correction for their number unnecessary. Not supported: F3 "
        "is not supported in some setting with intervals of 1 − 0.05 / number of settings. Not applicable: F3 is not "
        "applicable in any. Else inconclusive."
    ),
}


@dataclass(frozen=True)
class Claim:
    """A claim of F5: a weighted sum of the scores of matched models is above 0.

    Attributes:
        text: the claim in words.
        variant: the variant that it is about.
        weights: of the score of each variant in the contrast.
    """

    text: str
    variant: str
    weights: Mapping[str, float]


CLAIMS = (
    Claim("norms alone gain more than half of paper's gain", "norms", {"norms": 1, "standard": -0.5, "paper": -0.5}),
    Claim("paper gains against norms alone", "norms", {"paper": 1, "norms": -1}),
    Claim(
        "QKV in all blocks adds less than half of paper's gain to paper",
        "qkv_all",
        {"paper": 1.5, "standard": -0.5, "qkv_all": -1},
    ),
    Claim("MLP alone gains less than half of paper's gain", "mlp", {"standard": 0.5, "paper": 0.5, "mlp": -1}),
    Claim(
        "the output projection alone gains less than half of paper's gain",
        "proj",
        {"standard": 0.5, "paper": 0.5, "proj": -1},
    ),
)
