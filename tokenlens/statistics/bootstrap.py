"""Bootstrap intervals of numbers of a test set, by drawing its images with replacement."""

# Shapes: N images, K columns that are summed over images, M numbers made of the sums.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
DRAWS = 2000
PERCENTILES = (2.5, 97.5)


def bootstrap_interval(
    per_image_NK: Array, statistic: Callable[[Array], Array], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """Compute the percentile 95 % interval of numbers that depend on the images through sums only.

    Each draw takes N of the N images with replacement. scipy.stats.bootstrap would gather every image of every draw;
    multiplying the columns by the count of each image is the same in one matrix product.

    Args:
        per_image_NK: the terms of each image, e.g. a hit, or intersections and unions of each class.
        statistic: maps sums (draws, K) to numbers (draws, M), NaN where undefined.
        draws: number of draws.
        seed: seed of the draws.

    Returns:
        Lower and upper bounds, (M,) each; NaN with fewer than two images.

    >>> hits = np.array([[1.0], [0.0]] * 50)
    >>> low, high = bootstrap_interval(hits, lambda sums: sums / 100)
    >>> round(float(low[0]), 2), round(float(high[0]), 2)
    (0.4, 0.6)
    """
    if len(per_image_NK) < 2:
        undefined = np.full(np.shape(statistic(per_image_NK.sum(0, keepdims=True)))[1:], np.nan)
        return undefined, undefined
    drawn = bootstrap_draws(per_image_NK, statistic, draws=draws, seed=seed)
    low, high = np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    defined = ~np.isnan(drawn).all(0)
    low[defined], high[defined] = np.nanpercentile(drawn[:, defined], PERCENTILES, axis=0)
    return low, high


def bootstrap_draws(
    per_image_NK: Array, statistic: Callable[[Array], Array], *, draws: int = DRAWS, seed: int = 0
) -> Array:
    """Compute the numbers (draws, M) of a bootstrap; the arguments are those of ``bootstrap_interval``.

    Sets of the same number of images are drawn alike, so the draws of two models on the same images can be subtracted.
    """
    count = len(per_image_NK)
    # RandomState gives the same numbers in every version of NumPy; Generator does not promise that.
    random = np.random.RandomState(seed % 2**32)
    numbers = []
    for first in range(0, draws, 100):
        counts = [np.bincount(random.randint(0, count, count), minlength=count) for _ in range(min(100, draws - first))]
        numbers.append(statistic(np.asarray(counts, dtype=np.float64) @ per_image_NK))
    return np.concatenate(numbers)
