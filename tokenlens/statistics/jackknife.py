"""Jackknife intervals of statistics of a whole set of images."""

# Shapes: G groups of images.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

JACKKNIFE_GROUPS = 20
"""Number of groups that images are divided into by their index; up to this many images each group is one image."""


def jackknife_interval(
    value: Array, left_out_G: Array, counts_G: NDArray[np.int64], level: float = 0.95
) -> tuple[Array, Array]:
    """Compute the interval of a statistic from its values with one group of images left out.

    The delete-m_j jackknife of Busing, Meijer and van der Leeden (1999), for groups of unequal size; with one image per
    group it is the ordinary jackknife. Student's t with (groups − 1) degrees of freedom.

    Args:
        value: the statistic of all images, any shape.
        left_out_G: the statistic without each group that has images, stacked on a first axis.
        counts_G: images in each of those groups.
        level: coverage.

    Returns:
        Lower and upper bounds in the shape of ``value``; NaN with fewer than three groups.
    """
    groups = len(counts_G)
    if groups < 3:
        undefined = np.full_like(value, np.nan)
        return undefined, undefined
    shape = (groups,) + (1,) * np.ndim(value)
    h = (counts_G.sum() / counts_G).reshape(shape)
    pseudo = h * value - (h - 1) * left_out_G
    # Weighted mean of the pseudo-values, n - m_j over n times left-out values taken from G times the whole.
    centre = (pseudo / h).sum(axis=0)
    variance = ((pseudo - centre) ** 2 / (h - 1)).mean(axis=0)
    half = stats.t.ppf(0.5 + level / 2, groups - 1) * np.sqrt(variance)
    return value - half, value + half
