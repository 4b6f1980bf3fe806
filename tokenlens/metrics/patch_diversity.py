"""Share of the patches of one image that is not common to all of them."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary, to_float64
from tokenlens.tokens import TOKEN_SITES


def diversity_from_sums(patch_sum: Tensor, norms: Tensor) -> Tensor:
    """Compute the diversity of P patches from their sum (..., D) and their norms (..., P), in [0, 1].

    ‖X − X̄‖²_F = Σ‖x_i‖² − ‖Σ x_i‖²/P.
    """
    common = to_float64(patch_sum).square().sum(-1) / norms.shape[-1]
    return (1 - common / to_float64(norms).square().sum(-1)).clamp(min=0).sqrt()


def patch_diversity(patch_BPD: Tensor) -> Tensor:
    """Compute ‖X − X̄‖_F/‖X‖_F of the patches X with mean patch X̄, per image, in [0, 1].

    0 where all patches are equal, 1 where their mean is 0.

    >>> import torch
    >>> patch_diversity(torch.tensor([[[3.0, 4.0], [3.0, -4.0]]]))
    tensor([0.8000], dtype=torch.float64)
    """
    return diversity_from_sums(patch_BPD.sum(-2), patch_BPD.norm(dim=-1))


class PatchDiversity(TokenMetric):
    """Share of the patches that differs from patch to patch, at every token site.

    Formula: ‖X − X̄‖_F/‖X‖_F, with the patches X of one image and their mean X̄; in [0, 1], 0 where all are alike.
    Reference: Wang et al. 2022 (arXiv 2203.05962), who show that attention alone drives it to 0 (oversmoothing).
    Pitfalls: A few high-norm patches make most of ‖X‖_F, and a massive channel with one value in all patches hides
        that they differ elsewhere. It is the root of a difference of sums in float32: exact to 1e-5 of itself above
        0.1, to 1e-5 absolute down to 0.005, and anything below 3e-4 may be 0.
    Tested against: differences from the mean patch in NumPy, image by image.
    """

    title = "patch diversity"
    unit = "share"
    sites = TOKEN_SITES
    needs = frozenset({"several_patches", "patch_sum"})

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute the diversity from the sum of the patches and their norms."""
        assert summary.patch_sum is not None
        return {("", "patch"): diversity_from_sums(summary.patch_sum, summary.norms_of("patch"))}
