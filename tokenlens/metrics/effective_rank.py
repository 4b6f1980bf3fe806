"""How many directions the patches of one image use."""
# Shapes: B images, P patches, D channels.

from __future__ import annotations

import torch
from torch import Tensor

from tokenlens.metrics.base import RawTokenMetric, RawTokens, Values


def effective_rank(patch_BPD: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of the patch matrix, per image, in [1, min(P, D)].

    Roy and Vetterli, The effective rank (EUSIPCO 2007).

    >>> round(float(effective_rank(torch.eye(3).unsqueeze(0))[0]), 6)
    3.0
    """
    values = torch.linalg.svdvals(patch_BPD)
    share = values / values.sum(-1, keepdim=True)
    return (-torch.special.xlogy(share, share).sum(-1)).exp()


class EffectiveRank(RawTokenMetric):
    """Of the patches at the end of each block."""

    title = "effective rank of the patches"
    unit = "rank"
    sites = ("resid_post",)
    opt_in = True
    cost = "a singular value decomposition per image and block: 2 to 5 times the forward pass of a ViT-S"

    def per_image(self, tokens: RawTokens) -> Values:
        """As ``effective_rank``."""
        return {("", "patch"): effective_rank(tokens.patch)}
