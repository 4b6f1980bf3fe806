"""‖μ_cls − μ_patch‖ / sqrt((tr Σ_cls + tr Σ_patch)/2), squares from pairs of different images and so without bias."""

import numpy as np

from tests.metrics._stored import Number, Stored, mean_off_diagonal

LEVEL = "set"
NEEDS = ("cls",)


def reference_centroid_separation(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        middle = x.mean((0, 1))  # differences only matter, and this keeps digits
        cls, patch = (stored.of(group, x) - middle for group in ("cls", "patch"))
        difference = cls.mean(1) - patch.mean(1)
        squared = mean_off_diagonal(difference @ difference.T)
        traces = 0.0
        for cloud in (cls, patch):
            means = cloud.mean(1)
            traces += (cloud**2).sum(-1).mean() - mean_off_diagonal(means @ means.T)
        with np.errstate(invalid="ignore", divide="ignore"):
            numbers["", block, site, "cls-patch", None] = float(np.sqrt(max(squared, 0.0)) / np.sqrt(traces / 2))
    return numbers
