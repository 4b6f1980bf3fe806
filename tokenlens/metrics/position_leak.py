"""How well a linear map reads a patch's place from its features."""
# Shapes: B images, P patches, D channels, F = D + 1 features with a constant, C = 2 coordinates.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics._jackknife import AccumulatingMetric
from tokenlens.metrics.base import Row, Subject, make_row
from tokenlens.reduction.summaries import to_float64
from tokenlens.tokens import Key, TokenLayout

MOST_IMAGES = 64
"""Images with a larger index do not count: the numbers of two analyses are then of equally many."""

RIDGE = 1e-3
"""Ridge penalty over the mean eigenvalue of the patches' covariance."""

Array = NDArray[np.float64]


NormalEquations = tuple[Array, Array]
"""Sums over patches of features x with a constant and of coordinates y: Σ x xᵀ (F, F) and Σ x yᵀ (F, C)."""


def fit_ridge(equations: NormalEquations, ridge: float = RIDGE) -> tuple[Array, Array]:
    """Fit y ≈ (x − x̄)·w + ȳ by ridge regression; return w (D, C), and the offset ȳ − x̄·w (C,)."""
    xx_FF, xy_FC = equations
    n = xx_FF[-1, -1]
    mean_D, mean_C = xx_FF[-1, :-1] / n, xy_FC[-1] / n
    covariance_DD = xx_FF[:-1, :-1] / n - np.outer(mean_D, mean_D)
    product_DC = xy_FC[:-1] / n - np.outer(mean_D, mean_C)
    penalty = ridge * np.trace(covariance_DD) / len(covariance_DD)
    if not penalty > 0:  # patches that are all alike have no direction to read from
        return np.zeros_like(product_DC), mean_C
    weight_DC = np.linalg.solve(covariance_DD + penalty * np.eye(len(covariance_DD)), product_DC)
    return weight_DC, mean_C - mean_D @ weight_DC


def explained(weight_DC: Array, offset_C: Array, equations: NormalEquations, yy_C: Array) -> float:
    """Compute R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)² on other patches, mean over the coordinates that vary."""
    xx_FF, xy_FC = equations
    n = xx_FF[-1, -1]
    w_FC = np.vstack([weight_DC, offset_C])
    residual_C = yy_C - 2 * (w_FC * xy_FC).sum(0) + (w_FC * (xx_FF @ w_FC)).sum(0)
    total_C = yy_C - xy_FC[-1] ** 2 / n
    varies = total_C > 1e-9 * n
    return float(np.mean(1 - residual_C[varies] / total_C[varies]))


class PositionLeak(AccumulatingMetric):
    """Linear predictability of a patch's row and column from its features, at the end of each block.

    Formula: R² on other images of ridge regression from x to (row, column), mean of both coordinates; at most 1, 0 for
        a constant guess, below 0 for a worse one. Of the first 64 images, those with even index and those with odd
        index are each fitted once and tested once, and the two R² are averaged. The penalty is 0.001 of the mean
        eigenvalue of the covariance.
    Reference: Islam et al. 2020 (arXiv 2001.08248) on position information in networks.
    Pitfalls: Needs images: with fewer patches in a half than several times D the fit is poor and R² too low; compare at
        equal n. Content that depends on the place (sky on top) counts as well. Linear and ridge: a lower bound.
    Tested against: ``numpy.linalg.lstsq`` with the penalty as additional rows.
    """

    title = "position leak"
    unit = "R²"
    no_interval = {"": "one split of the images in two halves, whose fits share no test images"}  # noqa: RUF012
    expensive_sites = ("resid_post",)
    cost = (
        "the products of all channels of the first 64 images: about 15 % of a ViT-S forward pass for these; holds "
        "16·D² bytes a block, 28 MB for a ViT-S and 113 MB for a ViT-B"
    )
    needs = frozenset({"several_patches"})

    def __init__(self) -> None:
        self._sums: dict[tuple[Key, int], tuple[Tensor, Tensor]] = {}
        self._seen = np.zeros(MOST_IMAGES, dtype=bool)
        self._layout: TokenLayout | None = None

    def prepare(self, subject: Subject) -> str | None:
        """Remember the layout."""
        self._layout = subject.layout
        return super().prepare(subject)

    def add_tokens(self, key: Key, indices: list[int], x_BTD: Tensor) -> None:
        """Add the normal equations of the first images."""
        assert self._layout is not None
        places_PC = _places(self._layout, x_BTD)
        for half in (0, 1):
            chosen = [i for i, index in enumerate(indices) if index < MOST_IMAGES and index % 2 == half]
            if not chosen:
                continue
            self._seen[[indices[i] for i in chosen]] = True
            patches = to_float64(self._layout.patches_of(x_BTD)[chosen]).flatten(0, 1)
            features = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
            xx, xy = features.mT @ features, features.mT @ places_PC.repeat(len(chosen), 1)
            known = self._sums.get((key, half))
            self._sums[key, half] = (xx, xy) if known is None else (known[0].add_(xx), known[1].add_(xy))

    def merge(self, other: PositionLeak) -> None:
        """Add the images of another instance."""
        self._seen = self._seen | other._seen
        for name, (xx, xy) in other._sums.items():
            known = self._sums.get(name)
            self._sums[name] = (xx, xy) if known is None else (known[0] + xx.to(known[0]), known[1] + xy.to(known[1]))

    def rows(self) -> list[Row]:
        """Return R² for each block; NaN where one half has no image."""
        rows = []
        for key in dict.fromkeys(key for key, _ in self._sums):
            halves = [self._sums.get((key, half)) for half in (0, 1)]
            value = np.nan if None in halves else self._value([pair for pair in halves if pair is not None])
            rows.append(make_row(("", key[0], str(key[1]), "patch", None), value, int(self._seen.sum()), "R²"))
        return rows

    def _value(self, halves: list[tuple[Tensor, Tensor]]) -> float:
        assert self._layout is not None
        equations = [(xx.cpu().double().numpy(), xy.cpu().double().numpy()) for xx, xy in halves]
        square_C = np.square(_places(self._layout, torch.empty(0, dtype=torch.float64)).numpy()).mean(0)
        found = []
        for train, test in (equations, equations[::-1]):
            found.append(explained(*fit_ridge(train), test, square_C * test[0][-1, -1]))
        return float(np.mean(found))


def _places(layout: TokenLayout, like: Tensor) -> Tensor:
    """Return row and column of each patch, from −1 to 1, (P, C), in float64 where the device has it."""
    axes = [torch.linspace(-1, 1, side, dtype=torch.float64) if side > 1 else torch.zeros(1) for side in layout.grid]
    rows, columns = torch.meshgrid(*(axis.double() for axis in axes), indexing="ij")
    places_PC = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return places_PC.to(to_float64(like[:0]).dtype).to(like.device)
