"""Mean cosine similarity between the CLS token and the patches."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._per_image import CosineMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def cls_patch_cosine(cls_BD: Tensor, patch_BPD: Tensor) -> Tensor:
    """Compute the mean over patches of cos(CLS, patch), per image, in [-1, 1].

    Computed from the sum of the unit patch vectors, so the cost is O(P·D).

    >>> import torch
    >>> cls_patch_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]))
    tensor([0.5000])
    """
    patch_sum_BD = normalize(patch_BPD, dim=-1).sum(dim=-2)
    return (normalize(cls_BD, dim=-1) * patch_sum_BD).sum(-1) / patch_BPD.shape[-2]


class CLSPatchCosine(CosineMetric):
    """Cosine between CLS and the patches of the same image, at every token site and per head at q, k and v.

    Formula: ⟨cos(cls, patch_i)⟩ over patches = u_cls·(Σ u_i)/P, in [−1, 1].
    Reference: Marouani et al. 2026 (arXiv 2602.08626).
    Pitfalls: Lengths do not matter, but a few large channels do: they alone can set the cosine.
    Tested against: every single cosine in NumPy.
    """

    title = "CLS–patch cosine"
    needs = frozenset({"cls", "unit_patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute ``cls_patch_cosine`` from the sum of unit patches."""
        assert summary.unit_patch_sum is not None
        cosine = (summary.unit_group("cls").mean(-2) * summary.unit_patch_sum).sum(-1) / summary.layout.patches
        return {("", "cls-patch"): cosine}
