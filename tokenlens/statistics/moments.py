"""Streaming, mergeable float64 moments, and an interval of the mean that covers for skewed numbers."""

# Shapes: S numbers, B images.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

UNSEEN = 0.08
"""How far, in parts of the range, the mean of images of a kind that is missing may lie from that of the others."""


class Moments:
    """Count, mean, spread and skewness of S numbers from batches in any order; only finite values count.

    The pairwise updates of Chan, Golub and LeVeque (1979) and Pébay (2008), in float64, so merging two halves equals
    one pass to rounding.

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
        self._m3: Array = np.zeros(0)

    def update(self, values_BS: Array) -> None:
        """Add a batch (B, S)."""
        values = np.asarray(values_BS, dtype=np.float64)
        defined = np.isfinite(values)
        n = defined.sum(axis=0)
        mean = np.where(defined, values, 0.0).sum(axis=0) / np.maximum(n, 1)
        centred = np.where(defined, values - mean, 0.0)
        squares = centred**2
        self._add(n, mean, squares.sum(axis=0), (squares * centred).sum(axis=0))

    def merge(self, other: Moments) -> None:
        """Add the batches of another instance."""
        self._add(other.n, other.mean, other._m2, other._m3)

    def _add(self, n: NDArray[np.int64], mean: Array, m2: Array, m3: Array) -> None:
        if not len(n):
            return
        if not len(self.n):
            self.n, self.mean = np.zeros_like(n), np.zeros_like(mean)
            self._m2, self._m3 = np.zeros_like(m2), np.zeros_like(m3)
        total = self.n + n
        share = n / np.maximum(total, 1)
        delta = mean - self.mean
        # (n_a − n_b)·n_a·n_b/n² and (n_a·M2_b − n_b·M2_a)/n, with share = n_b/n
        kept = 1 - share
        self._m3 = (
            self._m3 + m3 + delta**3 * self.n * share * (kept - share) + 3 * delta * (kept * m2 - share * self._m2)
        )
        self._m2 = self._m2 + m2 + delta**2 * self.n * share
        self.mean = self.mean + delta * share
        self.n = total

    @property
    def sd(self) -> Array:
        """Return the standard deviation over images (n − 1 in the denominator); NaN where n < 2."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.n > 1, np.sqrt(self._m2 / np.maximum(self.n - 1, 1)), np.nan)

    @property
    def skewness(self) -> Array:
        """Return the adjusted Fisher–Pearson skewness; 0 where n < 3 or without spread."""
        with np.errstate(invalid="ignore", divide="ignore"):
            n = np.maximum(self.n, 3).astype(np.float64)
            skewness = np.sqrt(n) * self._m3 / self._m2**1.5 * np.sqrt(n * (n - 1)) / (n - 2)
        return np.where((self.n > 2) & np.isfinite(skewness), skewness, 0.0)

    def interval(self, level: float = 0.95, ranges: Array | None = None) -> tuple[Array, Array]:
        """Return an interval of the mean that covers for skewed numbers, too; NaN where n < 2.

        Student's t interval, and where that of Hall (1992) reaches further, its end: Student's quantiles after a cubic
        transformation that removes the skewness. Without skewness it is the t interval. Kinds of images of which there
        is one in n may not be among n. Bounded numbers therefore have an allowance of 0.08/n of their range: neither
        end is closer to the mean than that, and both move out by it times half of the skewness (up to 3). The allowance
        is measured (benchmarks/results/coverage.md).

        Args:
            level: coverage.
            ranges: width of the range of each number, 0 where it is not bounded.
        """
        count = np.maximum(self.n, 1)
        quantile = stats.t.ppf(0.5 + level / 2, np.maximum(self.n - 1, 1)) / np.sqrt(count)
        below, above = (hall_transform(sign * quantile, self.skewness, count) for sign in (1, -1))
        unseen = np.zeros_like(self.mean) if ranges is None else UNSEEN * ranges / count
        # The skewness of a spread that is rounding says nothing.
        skewness = 0.0 if ranges is None else np.where(self.sd > 1e-6 * ranges, self.skewness, 0.0)
        more = unseen * np.minimum(np.abs(skewness), 3) / 2
        reaches = (np.maximum(self.sd * np.maximum(quantile, reach), unseen) + more for reach in (below, -above))
        low, high = (sign * reach for sign, reach in zip((-1, 1), reaches, strict=True))
        return self.mean + low, self.mean + high


def wilson_interval(share: Array, n: NDArray[np.int64], level: float = 0.95) -> tuple[Array, Array]:
    """Return Wilson's interval (1927) of the share of a population, from the share of n images; NaN where n < 2.

    >>> [round(float(end), 4) for end in wilson_interval(np.array(0.0), np.array(48))]
    [0.0, 0.0741]
    """
    z2 = stats.norm.ppf(0.5 + level / 2) ** 2
    count = np.where(n > 1, n, np.nan)
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def hall_transform(quantile: Array, skewness: Array, n: NDArray[np.int64]) -> Array:
    """Solve x + γx²/3 + γ²x³/27 + γ/(6n) = quantile for x, which is (mean − true mean)/sd.

    Hall 1992, On the removal of skewness by transformation (J. R. Stat. Soc. B 54), with γ the skewness.
    """
    slight = np.abs(skewness) < 1e-4
    gamma = np.where(slight, 1.0, skewness)
    solved = 3 / gamma * (np.cbrt(1 + gamma * (quantile - gamma / (6 * n))) - 1)
    return np.where(slight, quantile, solved)


def cut_interval(value: Array, low: Array, high: Array, bounds_S2: Array) -> tuple[Array, Array]:
    """Cut intervals where their quantity ends, which takes no possible value away; the estimate stays inside.

    >>> cut_interval(np.array([0.02]), np.array([-0.01]), np.array([0.05]), np.array([[0.0, 1.0]]))
    (array([0.]), array([0.05]))
    """
    lowest, highest = np.asarray(bounds_S2, dtype=np.float64).T
    return np.maximum(low, np.fmin(lowest, value)), np.minimum(high, np.fmax(highest, value))
