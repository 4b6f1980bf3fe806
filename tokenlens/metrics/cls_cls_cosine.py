"""How alike CLS is from image to image: near 1, it says little about this image."""
# Shapes: N cells (block, site), B images, D channels.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.base import FEATURE_SITES, JackknifeMetric
from tokenlens.metrics.patch_patch_cosine import mean_pair_cosine
from tokenlens.reduction.summaries import TokenSummary


def cls_cls_cosine(cls_BD: Tensor) -> Tensor:
    """Mean cosine over pairs of images of their CLS tokens, in [-1, 1]: (‖Σ_n u_n‖² − n)/(n(n−1))."""
    return mean_pair_cosine(normalize(cls_BD, dim=-1).sum(-2), cls_BD.shape[-2])


def pair_cosine_of_sums(
    sums: dict[str, NDArray[np.float64]], n: int, group: str
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """The mean pair cosine of n unit vectors from their sums (N, D); NaN for fewer than two."""
    if n < 2:
        return {("", group): np.full(len(sums["unit"]), np.nan)}
    return {("", group): ((sums["unit"] ** 2).sum(-1) - n) / (n * (n - 1))}


class CLSCLSCosine(JackknifeMetric):
    """At every token site, between images."""

    title = "CLS–CLS cosine between images"
    unit = "cosine"
    sites = FEATURE_SITES
    requires = ("cls",)

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Each image's unit CLS vector."""
        return {"unit": summary.unit_group("cls").squeeze(-2)}

    def value(
        self, sums: dict[str, NDArray[np.float64]], n: int, constants: dict[str, NDArray[np.float64]]
    ) -> dict[tuple[str, str], NDArray[np.float64]]:
        """As ``cls_cls_cosine``, from the sum over images."""
        return pair_cosine_of_sums(sums, n, "cls-cls")
