"""‖μ_cls − μ_patch‖ / sqrt((tr Σ_cls + tr Σ_patch)/2), with means subtracted before squaring."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "set"
NEEDS = ("cls",)


def reference_centroid_separation(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        clouds = [stored.of(group, x).reshape(-1, x.shape[-1]) for group in ("cls", "patch")]
        centres = [cloud.mean(0) for cloud in clouds]
        traces = [((cloud - centre) ** 2).sum(-1).mean() for cloud, centre in zip(clouds, centres, strict=True)]
        distance = np.linalg.norm(centres[0] - centres[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            numbers["", block, site, "cls-patch", None] = float(distance / np.sqrt(sum(traces) / 2))
    return numbers
