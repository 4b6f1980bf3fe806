"""How aligned the registers are with CLS."""
# Shapes: B images, R registers, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.base import FEATURE_SITES, HEAD_COST, HEAD_SITE_NAMES, TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def reg_cls_cosine(reg_BRD: Tensor, cls_BD: Tensor) -> Tensor:
    """Mean over registers of cos(register, CLS), per image, in [-1, 1]."""
    return (normalize(reg_BRD, dim=-1) * normalize(cls_BD, dim=-1).unsqueeze(-2)).sum(-1).mean(-1)


class RegCLSCosine(TokenMetric):
    """At every token site; per head for q, k and v where the metric is asked for by name."""

    title = "register–CLS cosine"
    unit = "cosine"
    sites = FEATURE_SITES
    named_sites = HEAD_SITE_NAMES
    cost = HEAD_COST
    requires = ("cls", "reg")

    def per_image(self, summary: TokenSummary) -> Values:
        """As ``reg_cls_cosine``; the hook keeps the prefix tokens themselves."""
        # A vector of length 0 has no direction: NaN here, as for all cosines.
        return {("", "reg-cls"): (summary.unit_group("reg") * summary.unit_group("cls")).sum(-1).mean(-1)}
