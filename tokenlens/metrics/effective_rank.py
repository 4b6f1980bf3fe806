"""Effective rank of the patches of one image."""
# Shapes: B images, P patches, D channels.

from __future__ import annotations

import torch
from torch import Tensor

from tokenlens.metrics._per_image import RawTokenMetric, RawTokens, Values


def effective_rank(patch_BPD: Tensor) -> Tensor:
    """Compute exp of the entropy of the normalized singular values of the patches, per image, in [1, min(P, D)].

    >>> round(float(effective_rank(torch.eye(3).unsqueeze(0))[0]), 6)
    3.0
    """
    values = torch.linalg.svdvals(patch_BPD)
    share = values / values.sum(-1, keepdim=True)
    return (-torch.special.xlogy(share, share).sum(-1)).exp()


class EffectiveRank(RawTokenMetric):
    """Number of directions that the patches of one image use, at the end of each block.

    Formula: exp(−Σ p_k log p_k), where p are the singular values of the P×D patches over their sum; in [1, min(P, D)].
    Reference: Roy and Vetterli 2007 (EUSIPCO).
    Pitfalls: The patches are not centred, so a large common mean lowers it. Bounded by the number of patches.
    Tested against: ``numpy.linalg.svd``, image by image.
    """

    title = "effective rank of the patches"
    unit = "rank"
    expensive_sites = ("resid_post",)
    cost = "a singular value decomposition per image and block: 2 to 5 times the forward pass of a ViT-S"

    def per_image(self, tokens: RawTokens) -> Values:
        """Compute ``effective_rank``."""
        return {("", "patch"): effective_rank(tokens.patch)}
