"""Mean cosine similarity between the registers and the patches."""
# Shapes: B images, R registers, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._per_image import CosineMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def reg_patch_cosine(reg_BRD: Tensor, patch_BPD: Tensor) -> Tensor:
    """Compute the mean over registers and patches of cos(register, patch), per image, in [-1, 1]."""
    mean_reg_BD = normalize(reg_BRD, dim=-1).mean(-2)
    return (mean_reg_BD * normalize(patch_BPD, dim=-1).sum(-2)).sum(-1) / patch_BPD.shape[-2]


class RegPatchCosine(CosineMetric):
    """Cosine between the registers and the patches, at every token site and per head at q, k and v.

    Formula: ⟨cos(reg_r, patch_i)⟩ over all pairs of a register and a patch, in [−1, 1].
    Reference: Darcet et al. 2024 (arXiv 2309.16588) on registers.
    Pitfalls: Lengths do not matter, but a few large channels do: they alone can set the cosine.
    Tested against: every single cosine in NumPy.
    """

    title = "register–patch cosine"
    needs = frozenset({"reg", "unit_patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute ``reg_patch_cosine`` from the sum of unit patches."""
        assert summary.unit_patch_sum is not None
        cosine = (summary.unit_group("reg").mean(-2) * summary.unit_patch_sum).sum(-1) / summary.layout.patches
        return {("", "reg-patch"): cosine}
