"""Differences between the numbers of two models, with 95 % intervals, tests between images and effect sizes."""
# Shapes: N images, S numbers of a model.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS
from tokenlens.statistics.moments import Moments

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

EXACT_RELATIVE, EXACT_ABSOLUTE = 1e-5, 1e-6
"""Exactness of the metrics, as the tests hold it: smaller differences may be rounding."""

FALSE_DISCOVERY_RATE = 0.05
"""A difference is significant if its Benjamini–Hochberg q is below this."""


@dataclass(frozen=True)
class Differences:
    """Differences of S numbers from those of a baseline; all arrays are (S,), NaN where undefined.

    Attributes:
        value, baseline_value: the two numbers.
        difference: ``value − baseline_value``.
        ci_low, ci_high: its 95 % interval; NaN where no test is possible.
        p: two-sided; 1 if the difference is within the metrics' exactness, NaN where no test is possible: for fewer
            than two images, undefined numbers, and different numbers that do not vary over images.
        effect: difference over the pooled SD over images (Cohen's d with the mean of the two variances); NaN for
            numbers of the whole set and for numbers that do not vary over images.
        n, n_baseline: images behind each of the two.
    """

    value: Array
    baseline_value: Array
    difference: Array
    ci_low: Array
    ci_high: Array
    p: Array
    effect: Array
    n: Counts
    n_baseline: Counts


def exactness(value: Array, baseline_value: Array) -> Array:
    """Compute the largest difference that may be rounding: 1e-5 of the larger number, plus 1e-6."""
    return EXACT_RELATIVE * np.maximum(np.abs(value), np.abs(baseline_value)) + EXACT_ABSOLUTE


def compare_paired(values_NS: Array, baseline_NS: Array) -> Differences:
    """Test paired differences by Student's t over images; images where either number is undefined do not count.

    >>> found = compare_paired(np.array([[1.0], [2.0], [4.0]]), np.array([[0.0], [1.5], [2.0]]))
    >>> float(found.difference[0].round(3)), float(found.p[0].round(3))
    (1.167, 0.118)
    """
    both_NS = np.isfinite(values_NS) & np.isfinite(baseline_NS)
    one, two, between = Moments(), Moments(), Moments()
    for moments, numbers_NS in ((one, values_NS), (two, baseline_NS), (between, values_NS - baseline_NS)):
        moments.update(np.where(both_NS, numbers_NS, np.nan))
    value, baseline_value = (np.where(moments.n > 0, moments.mean, np.nan) for moments in (one, two))
    error = _standard_error(between.sd, between.n)
    difference = np.where(between.n > 0, between.mean, np.nan)
    spread = _pooled(one.sd, two.sd)
    exact = exactness(value, baseline_value)
    low, high, p = _t_test(difference, error, between.n - 1.0, spread, exact)
    effect = _effect(difference, spread, exact)
    return Differences(value, baseline_value, difference, low, high, p, effect, between.n, between.n)


def compare_unpaired(
    value: Array, sd: Array, n: Counts, baseline_value: Array, baseline_sd: Array, n_baseline: Counts
) -> Differences:
    """Test differences by Welch's t from two means, their spreads over images and their counts, all (S,)."""
    errors = (_standard_error(sd, n), _standard_error(baseline_sd, n_baseline))
    spread = _pooled(sd, baseline_sd)
    error, df = welch_error(errors, (n - 1.0, n_baseline - 1.0))
    exact = exactness(value, baseline_value)
    low, high, p = _t_test(value - baseline_value, error, df, spread, exact)
    effect = _effect(value - baseline_value, spread, exact)
    return Differences(value, baseline_value, value - baseline_value, low, high, p, effect, n, n_baseline)


def compare_intervals(
    value: Array, ci_half: Array, n: Counts, baseline_value: Array, baseline_half: Array, n_baseline: Counts
) -> Differences:
    """Test differences by Welch's t from two values with jackknife intervals of half width ``…_half``, all (S,).

    The half width is the standard error times Student's t with (groups − 1) degrees of freedom. Treating the two
    numbers as independent is conservative if both are of the same images.
    """
    dfs = [np.minimum(count, JACKKNIFE_GROUPS) - 1.0 for count in (n, n_baseline)]
    halves = (ci_half, baseline_half)
    errors = [half / stats.t.ppf(0.975, np.maximum(df, 1)) for half, df in zip(halves, dfs, strict=True)]
    spread = np.maximum(ci_half, baseline_half)
    error, df = welch_error((errors[0], errors[1]), (dfs[0], dfs[1]))
    low, high, p = _t_test(value - baseline_value, error, df, spread, exactness(value, baseline_value))
    effect = np.full_like(value, np.nan)
    return Differences(value, baseline_value, value - baseline_value, low, high, p, effect, n, n_baseline)


def q_values(p: Array) -> Array:
    """Adjust p-values by Benjamini and Hochberg (1995), (S,); undefined ones are no tests and stay undefined."""
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def welch_error(errors: tuple[Array, Array], dfs: tuple[NDArray[Any], NDArray[Any]]) -> tuple[Array, NDArray[Any]]:
    """Compute standard error and Welch–Satterthwaite degrees of freedom of a difference of two independent numbers."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = errors[0] ** 2 + errors[1] ** 2
        df = variance**2 / (errors[0] ** 4 / dfs[0] + errors[1] ** 4 / dfs[1])
    # Without spread the interval has no width, whatever the df.
    return np.sqrt(variance), np.where(variance == 0, dfs[0] + dfs[1], df)


def _t_test(
    difference: Array, error: Array, df: NDArray[Any], spread: Array, exact: Array
) -> tuple[Array, Array, Array]:
    """Compute bounds and two-sided p as in ``Differences``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(df > 0, df, np.nan)
        half = stats.t.ppf(0.975, df) * error
        zero = np.abs(difference) <= exact
        p = np.where(zero, 1.0, 2 * stats.t.sf(np.abs(difference) / error, df))
        tested = np.isfinite(half) & (zero | (spread > exact))
    p, half = np.where(tested, p, np.nan), np.where(tested, half, np.nan)
    return difference - half, difference + half, p


def _standard_error(sd: Array, n: Counts) -> Array:
    return np.asarray(sd / np.sqrt(np.maximum(n, 1)), dtype=np.float64)


def _pooled(sd: Array, baseline_sd: Array) -> Array:
    """Compute the root of the mean of the two variances."""
    return np.asarray(np.sqrt((sd**2 + baseline_sd**2) / 2))


def _effect(difference: Array, spread: Array, exact: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > exact, difference / spread, np.nan)
