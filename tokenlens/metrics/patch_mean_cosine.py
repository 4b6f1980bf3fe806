"""How alike the mean patch is from image to image."""
# Shapes: N cells (block, site), B images, P patches, D channels.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics.base import FEATURE_SITES, JackknifeMetric
from tokenlens.metrics.cls_cls_cosine import cls_cls_cosine, pair_cosine_of_sums
from tokenlens.reduction.summaries import TokenSummary


def patch_mean_cosine(patch_BPD: Tensor) -> Tensor:
    """Mean cosine over pairs of images of their mean patch token, in [-1, 1]."""
    return cls_cls_cosine(patch_BPD.mean(-2))


class PatchMeanCosine(JackknifeMetric):
    """At every token site, between images."""

    title = "mean-patch cosine between images"
    unit = "cosine"
    sites = FEATURE_SITES
    wanted = frozenset({"patch_sum"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Each image's mean patch as a unit vector."""
        assert summary.patch_sum is not None
        return {"unit": summary.patch_sum / summary.patch_sum.norm(dim=-1, keepdim=True)}

    def value(
        self, sums: dict[str, NDArray[np.float64]], n: int, constants: dict[str, NDArray[np.float64]]
    ) -> dict[tuple[str, str], NDArray[np.float64]]:
        """As ``patch_mean_cosine``, from the sum over images."""
        return pair_cosine_of_sums(sums, n, "patch-patch")
