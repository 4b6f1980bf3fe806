"""Ridge regression from normal equations, with standardized targets."""

# Shapes: N rows, D inputs, E targets.

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
"""Penalty, as a multiple of the mean variance of the inputs."""


class Ridge:
    """Linear regression with a penalty on the weights, fitted from sums that are collected batch by batch in float64.

    Targets are standardized: each has mean 0 and variance 1 over all rows. The intercept is not penalized.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: list[Tensor] = []

    def add(self, x_ND: Tensor, y_NE: Tensor) -> None:
        """Add rows of inputs and targets."""
        x, y = x_ND.detach().cpu().double(), y_NE.detach().cpu().double()
        new = [x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum(0)]
        self._sums = [old + one for old, one in zip(self._sums, new, strict=True)] if self._sums else new
        self.rows += len(x)

    def solve(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight (E, D) and bias (E) of the regression, and mean and standard deviation (E) of the targets."""
        x_D, y_E, xx_DD, xy_DE, yy_E = (total / self.rows for total in self._sums)
        sd_E = (yy_E - y_E**2).clamp_min(1e-12).sqrt()
        covariance_DD = xx_DD - torch.outer(x_D, x_D)
        penalty = RIDGE * covariance_DD.diagonal().mean() * torch.eye(len(x_D), dtype=torch.float64)
        weight_DE = torch.linalg.solve(covariance_DD + penalty, (xy_DE - torch.outer(x_D, y_E)) / sd_E)
        return weight_DE.T, -(x_D @ weight_DE), y_E, sd_E
