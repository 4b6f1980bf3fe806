"""Means and standard deviations of the tokens of each group, over a set of images."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import torch
from torch import Tensor

from tokenlens.tokens import TokenLayout


class TokenStatistics:
    """Moments of the tokens of one site, position by position for special tokens and over all patches for patches."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.images = 0
        self._mean_TD: Tensor | None = None
        self._squares_TD: Tensor | None = None
        """Σ (x − mean)² over images."""

    def update(self, x_BTD: Tensor) -> None:
        """Add a batch."""
        x = x_BTD.float() if x_BTD.device.type == "mps" else x_BTD.double()
        mean_TD = x.mean(0)
        self._add(len(x), mean_TD, (x - mean_TD).square().sum(0))

    def merge(self, other: TokenStatistics) -> None:
        """Add the images of another process."""
        if other._mean_TD is not None and other._squares_TD is not None:
            self._add(other.images, other._mean_TD, other._squares_TD)

    def _add(self, images: int, mean_TD: Tensor, squares_TD: Tensor) -> None:
        if self._mean_TD is None or self._squares_TD is None:
            self.images, self._mean_TD, self._squares_TD = images, mean_TD, squares_TD
            return
        total = self.images + images
        delta_TD = mean_TD.to(self._mean_TD.device) - self._mean_TD
        added_TD = squares_TD.to(self._mean_TD.device) + delta_TD.square() * (self.images * images / total)
        self._squares_TD = self._squares_TD + added_TD
        self._mean_TD = self._mean_TD + delta_TD * (images / total)
        self.images = total

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (n in the denominator), (T, D); all patches have the same ones."""
        assert self._mean_TD is not None
        assert self._squares_TD is not None
        mean_TD, variance_TD = self._mean_TD.clone(), self._squares_TD / self.images
        patches = list(self.layout.positions("patch"))
        of_patches = mean_TD[patches]
        mean_D = of_patches.mean(0)
        variance_TD[patches] = variance_TD[patches].mean(0) + (of_patches - mean_D).square().mean(0)
        mean_TD[patches] = mean_D
        return mean_TD, torch.sqrt(variance_TD)
