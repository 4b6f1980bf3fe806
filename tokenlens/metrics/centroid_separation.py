"""Distance between the centroids of CLS and patch tokens, in units of their spread."""
# Shapes: N keys (block, site), B images, D channels.

from __future__ import annotations

import numpy as np
from torch import Tensor

from tokenlens.metrics._jackknife import Array, JackknifeMetric
from tokenlens.reduction.summaries import TokenSummary, to_float64
from tokenlens.tokens import TOKEN_SITES


class CentroidSeparation(JackknifeMetric):
    """Distance between the centroids of CLS and patches, over all tokens of the whole set of images.

    Formula: ‖m_cls − m_patch‖ / √((tr Σ_cls + tr Σ_patch)/2), ≥ 0, with mean m and covariance Σ over all images and,
        for patches, over all positions. The squared distance and the traces are unbiased estimates: of the squared
        distance of the means, what their sampling adds is subtracted (at least 0 is left).
    Reference: Fisher's criterion, with the traces of the covariances.
    Pitfalls: Near 0 the square root of what is left after the correction is 0 or far from it by chance. A spread from a
        few images is itself uncertain.
    Tested against: NumPy with means subtracted before squaring, and pairs of different images.
    """

    title = "centroid separation"
    unit = "ratio"
    sites = TOKEN_SITES
    needs = frozenset({"cls", "patch_sum"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Return the tokens and their squared norms."""
        assert summary.patch_sum is not None
        count, cls = summary.layout.patches, summary.group("cls")
        return {
            "cls": cls.mean(-2),
            # Not from the norms, which are rounded to float32: ‖m‖² may be far larger than the trace.
            "cls_square": to_float64(cls).square().sum(-1).mean(-1),
            "patch": summary.patch_sum / count,
            "patch_square": summary.norms_of("patch").square().mean(-1),
            "cls_mean_square": to_float64(cls.mean(-2)).square().sum(-1),
            "patch_mean_square": to_float64(summary.patch_sum / count).square().sum(-1),
            "product": (to_float64(cls.mean(-2)) * to_float64(summary.patch_sum / count)).sum(-1),
        }

    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Compute the separation from first and second moments; NaN for fewer than two images."""
        cls, patch = sums["cls"] / n, sums["patch"] / n
        if n < 2:
            return {("", "cls-patch"): np.full(len(cls), np.nan)}
        cls_square, patch_square = (cls**2).sum(-1), (patch**2).sum(-1)
        # Unbiased: ‖m‖² of different images only, from the sums over all pairs less those of an image with itself.
        pairs = n / (n - 1)
        cls_pairs = pairs * (cls_square - sums["cls_mean_square"] / n**2)
        patch_pairs = pairs * (patch_square - sums["patch_mean_square"] / n**2)
        mixed_pairs = pairs * ((cls * patch).sum(-1) - sums["product"] / n**2)
        trace = sums["cls_square"] / n - cls_pairs + sums["patch_square"] / n - patch_pairs
        distance = np.sqrt(np.maximum(cls_pairs + patch_pairs - 2 * mixed_pairs, 0.0))
        return {("", "cls-patch"): distance / np.sqrt(trace / 2)}
