"""How long the tokens of each group are, and how many patches stick out."""
# Shapes: B images, P patches; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics.base import RESIDUAL_SITES, TokenMetric, Values
from tokenlens.reduction.summaries import TokenSummary

HIGH_NORM_RATIO = 3.0
"""A patch is a high-norm token if its norm exceeds this many times the median patch norm of its image.

Darcet et al. (2024, arXiv 2309.16588) see norms about ten times the others' in large models and cut at an absolute
value chosen for DINOv2-g; a ratio to the image's own median needs no choice for each model.
"""


def median(x: Tensor) -> Tensor:
    """Median over the last axis, the mean of the two middle values where their number is even."""
    count = x.shape[-1]
    lower = x.median(dim=-1).values
    return lower if count % 2 else (lower + x.kthvalue(count // 2 + 1, dim=-1).values) / 2


def high_norm_share(norms_BP: Tensor, ratio: float = HIGH_NORM_RATIO) -> Tensor:
    """Share of patches whose norm exceeds ``ratio`` × the median patch norm of the image, in [0, 1]."""
    return _share_above(norms_BP, ratio * median(norms_BP))


def _share_above(norms: Tensor, threshold: Tensor) -> Tensor:
    return (norms > threshold.unsqueeze(-1)).to(norms.dtype).mean(-1)


class TokenNorm(TokenMetric):
    """On the residual stream, per group; max over median and the share of high-norm tokens for patches."""

    title = "token norm"
    unit = {"mean": "norm", "max_over_median": "ratio", "high_norm_share": "share"}  # noqa: RUF012
    sites = RESIDUAL_SITES

    def per_image(self, summary: TokenSummary) -> Values:
        """Mean norm of each group; the spread of the patches."""
        layout = summary.layout
        patch = summary.norms_of("patch")
        middle = median(patch)
        return {("mean", group): summary.norms_of(group).mean(-1) for group in layout.groups} | {
            ("max_over_median", "patch"): patch.amax(-1) / middle,
            ("high_norm_share", "patch"): _share_above(patch, HIGH_NORM_RATIO * middle),
        }
