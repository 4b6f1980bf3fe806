"""Mean cosine similarity between the patches of one image."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._per_image import CosineMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def mean_pair_cosine(unit_sum: Tensor, count: int) -> Tensor:
    """Compute the mean cosine over the pairs of ``count`` vectors from the sum of their unit vectors (..., D).

    (‖Σu‖² − P)/(P(P−1)): each vector's product with itself is 1, and the rest are the pairs, counted twice.
    """
    return (unit_sum.square().sum(-1) - count) / (count * (count - 1))


def patch_patch_cosine(patch_BPD: Tensor) -> Tensor:
    """Compute the mean cosine over pairs of different patches, per image, in [-1/(P−1), 1], without the P×P matrix.

    >>> import torch
    >>> patch_patch_cosine(torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]))
    tensor([0.])
    """
    return mean_pair_cosine(normalize(patch_BPD, dim=-1).sum(dim=-2), patch_BPD.shape[-2])


class PatchPatchCosine(CosineMetric):
    """Cosine between the patches of one image, at every token site and per head at q, k and v.

    Formula: ⟨cos(patch_i, patch_j)⟩ over i ≠ j = (‖Σ u_i‖² − P)/(P(P − 1)), in [−1/(P − 1), 1].
    Reference: Marouani et al. 2026 (arXiv 2602.08626).
    Pitfalls: Lengths do not matter, but a few large channels do: they alone can set the cosine.
    Tested against: the whole P×P matrix in NumPy.
    """

    title = "patch–patch cosine"
    needs = frozenset({"several_patches", "unit_patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute ``patch_patch_cosine`` from the sum of unit patches."""
        assert summary.unit_patch_sum is not None
        return {("", "patch-patch"): mean_pair_cosine(summary.unit_patch_sum, summary.layout.patches)}
