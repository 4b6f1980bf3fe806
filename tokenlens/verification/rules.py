"""Thresholds, titles and rules of the findings F3 to F6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenlens.statistics.seed_effects import MIN_SEEDS

CLAIMED_GAIN = 2.0
"""The smallest gain that the paper claims, in points of mIoU."""

MIN_GAIN = CLAIMED_GAIN / 2
"""A gain whose whole interval lies below this contradicts the paper's claim."""

MAX_LOSS = 1.0
"""Points of accuracy that may be lost while classification still counts as kept."""

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

_SCORES = (
    "A model's score is its mean IoU averaged over the probed resolutions; differences are taken between models of the "
    "same seed, and their 95 % interval is Student's t over seeds"
)
RULES = {
    "F3": (
        f"{_SCORES}. Supported: the interval lies above 0 and not wholly below {MIN_GAIN:g} point, and the interval of "
        f"the difference of accuracy (of CLS where it was probed) does not reach below −{MAX_LOSS:g} point. Not "
        f"supported: the interval lies wholly below {MIN_GAIN:g} point, half of the smallest gain of {CLAIMED_GAIN:g} "
        f"that the paper claims, or that of the accuracy wholly below −{MAX_LOSS:g}. Inconclusive otherwise, and with "
        f"fewer than {MIN_SEEDS} seeds. Two standard models of different seeds come out supported in at most 2.5 % of "
        "cases. The smallest detectable effect is the true gain at which 80 % of experiments with this many seeds and "
        "this spread have an interval above 0 (noncentral t). Training losses are reported and do not decide."
    ),
    "F4": (
        "Counted on the architecture, without training. Supported: the paper's specialization of ViT-B/16 adds "
        f"{PARAMETERS:g} ± {PARAMETERS_TOLERANCE:g} % parameters, the norms alone add less than {NEGLIGIBLE:g} %, and "
        f"neither changes the FLOPs by more than {NEGLIGIBLE:g} %. Not supported: otherwise."
    ),
    "F5": (
        f"{_SCORES}; the p-values of every variant against standard and against paper are corrected together (q, "
        "Benjamini and Hochberg). Judged only if paper gains against standard (q < 0.05). Five claims: norms alone "
        "gain more than half of paper's gain; paper gains against norms alone; and QKV in all blocks instead of the "
        "first third, MLP, and attention's output projection gain nothing. The first is a separate contrast, tested by "
        "its own p instead of q. A gain holds with q < 0.05 and a difference above 0, and is refuted by an interval "
        f"below 0. No gain holds with an interval below {MIN_GAIN:g} point, and is refuted by a gain with q < 0.05 "
        "whose interval is not. Supported: all claims hold. Not supported: one is refuted. Else inconclusive."
    ),
    "F6": (
        "F3 in each setting (objective, model, size). Supported: F3 is supported in all of at least two settings; "
        "requiring all of them makes a correction for their number unnecessary. Not supported: F3 is not supported in "
        "some setting with intervals of 1 − 0.05 / number of settings. Else inconclusive."
    ),
}


@dataclass(frozen=True)
class Claim:
    """A claim of F5.

    Attributes:
        text: the claim in words.
        variant: the variant that it is about.
        baseline: the variant that it is compared with; None for the mean of standard and paper.
        expected: whether the variant is claimed to gain.
    """

    text: str
    variant: str
    baseline: str | None
    expected: Literal["gain", "no gain"]


CLAIMS = (
    Claim("norms alone gain more than half of paper's gain", "norms", None, "gain"),
    Claim("paper gains against norms alone", "paper", "norms", "gain"),
    Claim("QKV in all blocks gains nothing against the first third", "qkv_all", "paper", "no gain"),
    Claim("MLP alone gains nothing", "mlp", "standard", "no gain"),
    Claim("the output projection alone gains nothing", "proj", "standard", "no gain"),
)
