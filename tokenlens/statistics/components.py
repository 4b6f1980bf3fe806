"""Principal components of vectors."""

# Shapes: M vectors, D channels, C components.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PrincipalAxes:
    """The directions of largest variance of some vectors, largest first.

    Args:
        mean_D: mean of the vectors.
        axes_CD: unit vectors.
        explained_C: share of the total variance along each, in [0, 1].
    """

    mean_D: Array
    axes_CD: Array
    explained_C: Array

    def scores(self, x_MD: Array) -> Array:
        """Return the centred coordinates of vectors along the axes, (M, C)."""
        scores_MC: Array = (x_MD - self.mean_D) @ self.axes_CD.T
        return scores_MC


def principal_axes(x_MD: NDArray[np.floating], count: int = 3) -> PrincipalAxes:
    """Compute at most ``count`` principal axes, min(M, D) if these are fewer, in float64.

    The sign of an axis is arbitrary: the channel with the largest weight gets a positive one.

    >>> principal_axes(np.array([[0.0, 0.0], [-3.0, 1.0], [3.0, -1.0]]), 1).axes_CD.round(3)
    array([[ 0.949, -0.316]])
    """
    x_MD = np.asarray(x_MD, dtype=np.float64)
    mean_D = x_MD.mean(axis=0)
    _, singular, axes_CD = np.linalg.svd(x_MD - mean_D, full_matrices=False)
    axes_CD = axes_CD[:count]
    largest_C1 = np.take_along_axis(axes_CD, np.abs(axes_CD).argmax(axis=1)[:, None], axis=1)
    variance = singular**2
    explained_C = variance[:count] / max(variance.sum(), np.finfo(np.float64).tiny)
    return PrincipalAxes(mean_D, axes_CD * np.sign(largest_C1), explained_C)
