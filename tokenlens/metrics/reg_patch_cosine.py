"""How aligned the registers are with the patches."""
# Shapes: B images, R registers, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.base import FEATURE_SITES, HEAD_COST, HEAD_SITE_NAMES, TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def reg_patch_cosine(reg_BRD: Tensor, patch_BPD: Tensor) -> Tensor:
    """Mean over all pairs of a register and a patch of their cosine, per image, in [-1, 1]."""
    mean_reg_BD = normalize(reg_BRD, dim=-1).mean(-2)
    return (mean_reg_BD * normalize(patch_BPD, dim=-1).sum(-2)).sum(-1) / patch_BPD.shape[-2]


class RegPatchCosine(TokenMetric):
    """At every token site; per head for q, k and v where the metric is asked for by name."""

    title = "register–patch cosine"
    unit = "cosine"
    sites = FEATURE_SITES
    named_sites = HEAD_SITE_NAMES
    cost = HEAD_COST
    requires = ("reg",)
    wanted = frozenset({"unit_patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """As ``reg_patch_cosine``, from the sum that the hook took."""
        assert summary.unit_patch_sum is not None
        cosine = (summary.unit_group("reg").mean(-2) * summary.unit_patch_sum).sum(-1) / summary.patches
        return {("", "reg-patch"): cosine}
