"""Streaming, mergeable float64 moments, and the interval of the mean."""

# Shapes: S numbers, B images.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


class Moments:
    """Count, mean and spread of S numbers from batches in any order; values that are not finite do not count.

    Chan, Golub and LeVeque's pairwise update, in float64, so merging two halves equals one pass to rounding.

    >>> moments = Moments()
    >>> moments.update(np.array([[1.0], [2.0]]))
    >>> moments.update(np.array([[6.0]]))
    >>> float(moments.mean[0]), float(moments.sd[0].round(6)), int(moments.n[0])
    (3.0, 2.645751, 3)
    """

    def __init__(self) -> None:
        self.n: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.mean: Array = np.zeros(0)
        self._m2: Array = np.zeros(0)

    def update(self, values_BS: Array) -> None:
        """Add a batch (B, S)."""
        values = np.asarray(values_BS, dtype=np.float64)
        defined = np.isfinite(values)
        n = defined.sum(axis=0)
        mean = np.where(defined, values, 0.0).sum(axis=0) / np.maximum(n, 1)
        m2 = np.where(defined, values - mean, 0.0).__pow__(2).sum(axis=0)
        self._add(n, mean, m2)

    def merge(self, other: Moments) -> None:
        """Add the batches of another instance."""
        self._add(other.n, other.mean, other._m2)

    def _add(self, n: NDArray[np.int64], mean: Array, m2: Array) -> None:
        if not len(n):
            return
        if not len(self.n):
            self.n, self.mean, self._m2 = np.zeros_like(n), np.zeros_like(mean), np.zeros_like(m2)
        total = self.n + n
        share = n / np.maximum(total, 1)
        delta = mean - self.mean
        self._m2 = self._m2 + m2 + delta**2 * self.n * share
        self.mean = self.mean + delta * share
        self.n = total

    @property
    def sd(self) -> Array:
        """Return the standard deviation over images (n − 1 in the denominator); NaN where n < 2."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.n > 1, np.sqrt(self._m2 / np.maximum(self.n - 1, 1)), np.nan)

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Return Student's t interval of the mean; NaN where n < 2."""
        with np.errstate(invalid="ignore"):
            half = stats.t.ppf(0.5 + level / 2, np.maximum(self.n - 1, 1)) * self.sd / np.sqrt(np.maximum(self.n, 1))
        return self.mean - half, self.mean + half
