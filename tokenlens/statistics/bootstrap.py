"""How far a number of a test set may move with the images that happen to be in it."""

# Shapes: N images, K columns that are summed over images, M numbers made of the sums.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
DRAWS = 2000
PERCENTILES = (2.5, 97.5)


def interval(
    per_image_NK: Array, statistic: Callable[[Array], Array], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile 95 % interval of numbers that depend on the images through sums only, by drawing images anew.

    Each draw takes N of the N images with replacement. scipy.stats.bootstrap would gather every image of every draw;
    how often each was drawn, times its columns, is the same in one matrix product.

    Args:
        per_image_NK: what each image adds, e.g. a hit, or intersections and unions of each class.
        statistic: sums (draws, K) → numbers (draws, M); NaN where a draw does not define one.
        draws: how many.
        seed: of the draws.

    Returns:
        Lower and upper ends, (M,) each; NaN with fewer than two images.

    >>> hits = np.array([[1.0], [0.0]] * 50)
    >>> low, high = interval(hits, lambda sums: sums / 100)
    >>> round(float(low[0]), 2), round(float(high[0]), 2)
    (0.4, 0.6)
    """
    count = len(per_image_NK)
    if count < 2:
        nothing = np.full(np.shape(statistic(per_image_NK.sum(0, keepdims=True)))[1:], np.nan)
        return nothing, nothing
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
    random = np.random.RandomState(seed % 2**32)
    numbers = []
    for first in range(0, draws, 100):
        times = [np.bincount(random.randint(0, count, count), minlength=count) for _ in range(min(100, draws - first))]
        numbers.append(statistic(np.asarray(times, dtype=np.float64) @ per_image_NK))
    drawn = np.concatenate(numbers)
    low, high = np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    defined = ~np.isnan(drawn).all(0)
    low[defined], high[defined] = np.nanpercentile(drawn[:, defined], PERCENTILES, axis=0)
    return low, high
