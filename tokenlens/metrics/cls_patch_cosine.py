"""How aligned CLS is with the patches."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.base import FEATURE_SITES, HEAD_COST, HEAD_SITE_NAMES, TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def cls_patch_cosine(cls_BD: Tensor, patch_BPD: Tensor) -> Tensor:
    """Mean over patches of cos(CLS, patch), per image, in [-1, 1].

    Computed from the sum of the unit patch vectors, so the cost is O(P·D).

    >>> import torch
    >>> cls_patch_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]))
    tensor([0.5000])
    """
    patch_sum_BD = normalize(patch_BPD, dim=-1).sum(dim=-2)
    return (normalize(cls_BD, dim=-1) * patch_sum_BD).sum(-1) / patch_BPD.shape[-2]


class CLSPatchCosine(TokenMetric):
    """At every token site; per head for q, k and v where the metric is asked for by name."""

    title = "CLS–patch cosine"
    unit = "cosine"
    sites = FEATURE_SITES
    named_sites = HEAD_SITE_NAMES
    cost = HEAD_COST
    requires = ("cls",)
    wanted = frozenset({"unit_patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """As ``cls_patch_cosine``, from the sum that the hook took."""
        assert summary.unit_patch_sum is not None
        cosine = (summary.unit_group("cls").squeeze(-2) * summary.unit_patch_sum).sum(-1) / summary.patches
        return {("", "cls-patch"): cosine}
