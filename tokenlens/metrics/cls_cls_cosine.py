"""Mean cosine similarity between the CLS tokens of different images."""
# Shapes: N keys (block, site), B images, D channels.

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._jackknife import PairCosineMetric
from tokenlens.metrics.patch_patch_cosine import mean_pair_cosine
from tokenlens.reduction.summaries import TokenSummary


def cls_cls_cosine(cls_BD: Tensor) -> Tensor:
    """Compute the mean over pairs of images of cos(CLS, CLS), in [-1, 1]."""
    return mean_pair_cosine(normalize(cls_BD, dim=-1).sum(-2), cls_BD.shape[-2])


class CLSCLSCosine(PairCosineMetric):
    """Cosine between the CLS tokens of different images, at every token site.

    Formula: ⟨cos(cls_n, cls_m)⟩ over images n ≠ m = (‖Σ u_n‖² − n)/(n(n − 1)), in [−1, 1]; of several class
        tokens each with itself in other images.
    Reference: anisotropy as in Ethayarajh 2019 (arXiv 1909.00512).
    Pitfalls: Near 1, CLS says little about *this* image; a few large channels common to all images suffice for that.
    Tested against: every single cosine in NumPy.
    """

    title = "CLS–CLS cosine between images"
    pair = "cls-cls"
    needs = frozenset({"cls"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Return the unit CLS vector of each image; several are joined, so that products are their mean cosine."""
        cls = summary.unit_group("cls")
        return {"unit": cls.flatten(-2) / math.sqrt(cls.shape[-2])}
