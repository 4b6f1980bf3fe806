"""Mean cosine similarity between the mean patches of different images."""
# Shapes: N keys (block, site), B images, P patches, D channels.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._jackknife import PairCosineMetric
from tokenlens.metrics.cls_cls_cosine import cls_cls_cosine
from tokenlens.reduction.summaries import TokenSummary


def patch_mean_cosine(patch_BPD: Tensor) -> Tensor:
    """Compute the mean over pairs of images of the cosine of their mean patches, in [-1, 1]."""
    return cls_cls_cosine(patch_BPD.mean(-2))


class PatchMeanCosine(PairCosineMetric):
    """Cosine between the mean patches of different images, at every token site.

    Formula: ⟨cos(p_n, p_m)⟩ over images n ≠ m, where p is the mean patch of an image, in [−1, 1].
    Reference: anisotropy as in Ethayarajh 2019 (arXiv 1909.00512).
    Pitfalls: Near 1, the mean patch says little about *this* image; a few large channels suffice for that.
    Tested against: every single cosine in NumPy.
    """

    title = "mean-patch cosine between images"
    pair = "patch-patch"
    needs = frozenset({"patch_sum"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Return the mean patch of each image as a unit vector."""
        assert summary.patch_sum is not None
        return {"unit": summary.patch_sum / summary.patch_sum.norm(dim=-1, keepdim=True)}
