"""How aligned the patches are with each other."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.base import FEATURE_SITES, HEAD_COST, HEAD_SITE_NAMES, Subject, TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary


def mean_pair_cosine(unit_sum: Tensor, count: int) -> Tensor:
    """Mean cosine over the pairs of ``count`` vectors, in [-1, 1], from the sum of their unit vectors (..., D).

    (‖Σu‖² − P)/(P(P−1)): the P vectors' products with themselves are 1 each, the rest are the pairs, counted twice.
    """
    return (unit_sum.square().sum(-1) - count) / (count * (count - 1))


def patch_patch_cosine(patch_BPD: Tensor) -> Tensor:
    """Mean cosine over pairs of different patches, per image, in [-1/(P−1), 1]; never the P×P matrix.

    >>> import torch
    >>> patch_patch_cosine(torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]))
    tensor([0.])
    """
    return mean_pair_cosine(normalize(patch_BPD, dim=-1).sum(dim=-2), patch_BPD.shape[-2])


class PatchPatchCosine(TokenMetric):
    """At every token site; per head for q, k and v where the metric is asked for by name."""

    title = "patch–patch cosine"
    unit = "cosine"
    sites = FEATURE_SITES
    named_sites = HEAD_SITE_NAMES
    cost = HEAD_COST
    wanted = frozenset({"unit_patch_sum"})

    def prepare(self, subject: Subject) -> str | None:
        """One patch has no pair."""
        return "the image is one single patch" if subject.layout.patches < 2 else super().prepare(subject)

    def per_image(self, summary: TokenSummary) -> Values:
        """As ``patch_patch_cosine``, from the sum that the hook took."""
        assert summary.unit_patch_sum is not None
        return {("", "patch-patch"): mean_pair_cosine(summary.unit_patch_sum, summary.patches)}
