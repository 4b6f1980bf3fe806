"""Norms of the tokens of each group, and the share of high-norm patches."""
# Shapes: B images, P patches; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary
from tokenlens.tokens import RESIDUAL_SITES

HIGH_NORM_RATIO = 3.0
"""A patch is a high-norm token if its norm exceeds this many times the median patch norm of its image.

Everything that marks single patches uses this rule (``high_norm_patches``): interventions, maps, the explorer. Darcet
et al. see norms about ten times the others' in large models and cut at an absolute value chosen for DINOv2-g; a ratio
to the median of the image needs no choice for each model. The rule by spread (``OUTLIER_DEVIATIONS``) marks no patch:
where norms are nearly equal, it calls a patch 5 % above the others an outlier.
"""

OUTLIER_DEVIATIONS = 4.0
"""A norm is an outlier if it exceeds the image's median by this many standard deviations, estimated robustly."""

MAD_TO_SD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


def median(x: Tensor) -> Tensor:
    """Compute the median over the last axis, the mean of the two middle values where their number is even."""
    count = x.shape[-1]
    lower = x.median(dim=-1).values
    return lower if count % 2 else (lower + x.kthvalue(count // 2 + 1, dim=-1).values) / 2


def high_norm_patches(norms_BP: Tensor) -> Tensor:
    """Return which patches are high-norm tokens: above ``HIGH_NORM_RATIO`` × the image's median, (..., P) bool."""
    return norms_BP > (HIGH_NORM_RATIO * median(norms_BP)).unsqueeze(-1)


def high_norm_share(norms_BP: Tensor, ratio: float = HIGH_NORM_RATIO) -> Tensor:
    """Compute the share of patches whose norm exceeds ``ratio`` × the median of the image, in [0, 1]."""
    return _share_above(norms_BP, ratio * median(norms_BP))


def outlier_patches(norms_BP: Tensor) -> Tensor:
    """Return which patches are outliers: above median + 4·1.4826·MAD of their image's norms, (..., P) bool."""
    return norms_BP > _outlier_threshold(norms_BP, median(norms_BP)).unsqueeze(-1)


def outlier_share(norms_BP: Tensor) -> Tensor:
    """Compute the share of ``outlier_patches``, in [0, 1].

    >>> import torch
    >>> outlier_share(torch.tensor([9.0, 10.0, 11.0, 12.0, 20.0]))
    tensor(0.2000)
    """
    return outlier_patches(norms_BP).to(norms_BP.dtype).mean(-1)


def _outlier_threshold(norms_BP: Tensor, middle_B: Tensor) -> Tensor:
    deviation_B = median((norms_BP - middle_B.unsqueeze(-1)).abs())
    return middle_B + OUTLIER_DEVIATIONS * MAD_TO_SD * deviation_B


def _share_above(norms: Tensor, threshold: Tensor) -> Tensor:
    return (norms > threshold.unsqueeze(-1)).to(norms.dtype).mean(-1)


class TokenNorm(TokenMetric):
    """Norms of tokens on the residual stream, by group, and outliers among the patches.

    Formula: ‖x‖ of each token, and the patches' norms over their median in the image.
    Parts:
        mean: ⟨‖x‖⟩ over the tokens of a group.
        max_over_median: the largest patch norm over the median, ≥ 1.
        high_norm_share: share of patches with a norm above 3 × the median, in [0, 1]. The same rule marks patches as
            high-norm in interventions and maps.
        outlier_share: share of patches above median + 4·1.4826·MAD, with MAD = median |‖x‖ − median|, in [0, 1].
    Reference: Darcet et al. 2024 (arXiv 2309.16588), who cut at an absolute norm; Hampel 1974 for the MAD.
    Pitfalls: ``max_over_median`` is a maximum, which a few images with one extreme patch decide; it has no interval.
        ``outlier_share`` is relative to the spread: skewed norms have outliers by it that are no artefacts (1.6 %
        of the patches where norms are log-normal with σ = 0.5), and nearly equal norms have them 5 % above the median.
    Tested against: ``numpy.median`` and norms of stored tokens.
    """

    title = "token norm"
    unit = {"mean": "norm", "max_over_median": "ratio", "high_norm_share": "share", "outlier_share": "share"}  # noqa: RUF012
    sites = RESIDUAL_SITES
    no_interval = {  # noqa: RUF012
        "max_over_median": "rare images with an extreme patch decide the mean of a maximum",
        "outlier_share": "rare images with many outliers decide its mean",
    }

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute the mean norm of each group and the outliers among the patches."""
        layout = summary.layout
        patch = summary.norms_of("patch")
        middle = median(patch)
        return {("mean", group): summary.norms_of(group).mean(-1) for group in layout.groups} | {
            ("max_over_median", "patch"): patch.amax(-1) / middle,
            ("high_norm_share", "patch"): _share_above(patch, HIGH_NORM_RATIO * middle),
            ("outlier_share", "patch"): _share_above(patch, _outlier_threshold(patch, middle)),
        }
