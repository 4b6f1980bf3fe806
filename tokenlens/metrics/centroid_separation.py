"""How far the clouds of CLS and patch tokens lie apart, in units of their spread."""
# Shapes: N cells (block, site), B images, D channels.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics.base import FEATURE_SITES, JackknifeMetric
from tokenlens.reduction.summaries import TokenSummary, precise

Array = NDArray[np.float64]


class CentroidSeparation(JackknifeMetric):
    """‖μ_cls − μ_patch‖ / sqrt((tr Σ_cls + tr Σ_patch)/2) over all tokens of the data set, ≥ 0.

    Means and covariances (count in the denominator) are over all images, and for patches over all their places.
    """

    title = "centroid separation"
    unit = "ratio"
    sites = FEATURE_SITES
    requires = ("cls",)
    wanted = frozenset({"patch_sum"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Sums of tokens and of their squared norms."""
        assert summary.patch_sum is not None
        count, cls = summary.patches, summary.group("cls").squeeze(-2)
        return {
            "cls": cls,
            # Not from the norms: they were rounded to float32, and ‖μ‖² may be far larger than the trace.
            "cls_square": precise(cls).square().sum(-1),
            "patch": summary.patch_sum / count,
            "patch_square": summary.norms_of("patch").square().mean(-1),
        }

    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """From the first and second moments."""
        cls, patch = sums["cls"] / n, sums["patch"] / n
        # tr Σ = E‖x‖² − ‖E x‖²
        cls_trace = sums["cls_square"] / n - (cls**2).sum(-1)
        patch_trace = sums["patch_square"] / n - (patch**2).sum(-1)
        distance = np.sqrt(((cls - patch) ** 2).sum(-1))
        return {("", "cls-patch"): distance / np.sqrt((cls_trace + patch_trace) / 2)}
