"""Mean cosine similarity between the registers and the CLS token."""
# Shapes: B images, R registers, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._per_image import CosineMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def reg_cls_cosine(reg_BRD: Tensor, cls_BD: Tensor) -> Tensor:
    """Compute the mean over registers of cos(register, CLS), per image, in [-1, 1]."""
    return (normalize(reg_BRD, dim=-1) * normalize(cls_BD, dim=-1).unsqueeze(-2)).sum(-1).mean(-1)


class RegCLSCosine(CosineMetric):
    """Cosine between the registers and CLS, at every token site and per head at q, k and v.

    Formula: ⟨cos(reg_r, cls)⟩ over registers, in [−1, 1].
    Reference: Darcet et al. 2024 (arXiv 2309.16588) on registers.
    Pitfalls: Lengths do not matter, but a few large channels do: they alone can set the cosine.
    Tested against: every single cosine in NumPy.
    """

    title = "register–CLS cosine"
    needs = frozenset({"cls", "reg"})

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute ``reg_cls_cosine``; NaN where a token has length 0."""
        return {("", "reg-cls"): (summary.unit_group("reg").mean(-2) * summary.unit_group("cls").mean(-2)).sum(-1)}
