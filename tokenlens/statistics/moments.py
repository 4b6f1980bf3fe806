"""Streaming, mergeable float64 moments, and intervals from them."""

# Shapes: S series (numbers followed over images), B images, G groups of images.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

JACKKNIFE_GROUPS = 20
"""Images are dealt into this many groups by their index; up to this many images the jackknife leaves out one."""

ROWS_AT_ONCE = 256
"""Images that ``KeptRows`` makes room for at a time."""


class Moments:
    """Count, mean and spread of S series, from batches in any order; values that are not finite are not counted.

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
        """Add all that another instance has seen."""
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
        """Standard deviation over images (n − 1 in the denominator); NaN where n < 2."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.n > 1, np.sqrt(self._m2 / np.maximum(self.n - 1, 1)), np.nan)

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Student's t interval of the mean; NaN where n < 2."""
        with np.errstate(invalid="ignore"):
            half = stats.t.ppf(0.5 + level / 2, np.maximum(self.n - 1, 1)) * self.sd / np.sqrt(np.maximum(self.n, 1))
        return self.mean - half, self.mean + half


class KeptRows:
    """Rows of float32 numbers (images, S), taken in a few at a time and kept in blocks of many.

    Small arrays that stay behind among large temporary ones would break up the memory: 90 KB an image on ViT-S.
    """

    def __init__(self) -> None:
        self.count = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._free = 0

    def append(self, rows_BS: NDArray[Any]) -> None:
        """Take in some rows."""
        start = 0
        while start < len(rows_BS):
            if not self._free:
                self._blocks.append(np.empty((ROWS_AT_ONCE, rows_BS.shape[1]), dtype=np.float32))
                self._free = ROWS_AT_ONCE
            taken = min(self._free, len(rows_BS) - start)
            first = ROWS_AT_ONCE - self._free
            self._blocks[-1][first : first + taken] = rows_BS[start : start + taken]
            start, self._free = start + taken, self._free - taken
        self.count += len(rows_BS)

    def merge(self, other: KeptRows) -> None:
        """Take in all that another instance holds."""
        if other.count:
            self.append(other.rows())

    def rows(self) -> NDArray[np.float32]:
        """All rows, (images, S), in the order in which they came."""
        if not self._blocks:
            return np.zeros((0, 0), dtype=np.float32)
        last = len(self._blocks[-1]) - self._free
        return np.concatenate([*self._blocks[:-1], self._blocks[-1][:last]])


def jackknife_interval(
    value: Array, left_out_G: Array, counts_G: NDArray[np.int64], level: float = 0.95
) -> tuple[Array, Array]:
    """Interval of a statistic from its values with one group of images left out.

    The delete-m_j jackknife of Busing, Meijer and van der Leeden (1999), for groups of unequal size; with one image a
    group it is the ordinary jackknife. Student's t with (groups − 1) degrees of freedom.

    Args:
        value: the statistic of all images, any shape.
        left_out_G: the same without each group, stacked on a first axis of G (groups that hold images).
        counts_G: images in each of those groups.
        level: coverage.

    Returns:
        lower and upper bounds in the shape of ``value``; NaN with fewer than three groups.
    """
    groups = len(counts_G)
    if groups < 3:
        nothing = np.full_like(value, np.nan)
        return nothing, nothing
    shape = (groups,) + (1,) * np.ndim(value)
    h = (counts_G.sum() / counts_G).reshape(shape)
    pseudo = h * value - (h - 1) * left_out_G
    # Weighted mean of the pseudo-values, n - m_j over n times left-out values taken from G times the whole.
    centre = (pseudo / h).sum(axis=0)
    variance = ((pseudo - centre) ** 2 / (h - 1)).mean(axis=0)
    half = stats.t.ppf(0.5 + level / 2, groups - 1) * np.sqrt(variance)
    return value - half, value + half
