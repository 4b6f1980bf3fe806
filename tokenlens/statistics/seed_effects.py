"""Effects over a few training seeds: Student's t, and the smallest effect that the experiment could have detected.

The unit is the seed: one more training with other draws. Where the variance over test images is known, intervals cover
other seeds and other test images; otherwise other seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from tokenlens.statistics.differences import welch_error

MIN_SEEDS = 3
"""Fewer seeds give no verdict."""

POWER = 0.8
"""Share of experiments in which a true difference of ``detectable`` is found."""

MOST_SEEDS = 1000
"""The largest number of seeds that a search for enough of them tries."""


@dataclass(frozen=True)
class Effect:
    """Difference between a variant and a baseline over training seeds.

    Attributes:
        difference: mean over seeds; NaN without any.
        low: lower bound of its interval; NaN with one seed.
        high: upper bound.
        sd: standard deviation of the differences over pairs; unpaired √(variance + variance). NaN with one seed.
        p: two-sided; NaN with one seed.
        seeds: number of pairs; unpaired the smaller count.
        each: the difference of each pair, by seed; empty if unpaired.
        paired: whether both were trained from the same seeds.
        left_out: seeds that only one of the two has, which are not used.
        detectable: smallest true difference that would be found with 80 % power; NaN with one seed.
        image_variance: variance of the difference over test images, which is part of the interval; 0 if not considered.
    """

    difference: float
    low: float
    high: float
    sd: float
    p: float
    seeds: int
    each: Mapping[int, float]
    paired: bool
    left_out: tuple[int, ...]
    detectable: float
    image_variance: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.seeds >= MIN_SEEDS


def estimate_effect(
    variant: Mapping[int, float],
    baseline: Mapping[int, float],
    confidence: float = 0.95,
    image_variance: float = 0.0,
) -> Effect:
    """Estimate the difference between a variant and a baseline.

    Paired by seed, unless fewer than three seeds are in both while each has at least three: then by Welch's test.

    Args:
        variant: number of each model of the variant, by seed.
        baseline: number of each model of the baseline, by seed.
        confidence: confidence of the interval.
        image_variance: variance of the mean difference over test images, e.g. of its bootstrap draws. It is added to
            the variance over seeds, with Satterthwaite's degrees of freedom.
    """
    common = sorted(set(variant) & set(baseline))
    level = 1 - confidence
    if len(common) < MIN_SEEDS <= min(len(variant), len(baseline)):
        return _unpaired(np.array(list(variant.values())), np.array(list(baseline.values())), level, image_variance)
    each = {seed: float(variant[seed] - baseline[seed]) for seed in common}
    left_out = tuple(sorted(set(variant) ^ set(baseline)))
    differences = np.array(list(each.values()))
    if len(differences) < 2:
        difference = float(differences.mean()) if len(differences) else math.nan
        nan = math.nan
        return Effect(difference, nan, nan, nan, nan, len(differences), each, True, left_out, nan)
    sd = float(differences.std(ddof=1))
    error, freedom = sd / math.sqrt(len(differences)), len(differences) - 1.0
    facts: dict[str, Any] = {"seeds": len(differences), "each": each, "paired": True, "left_out": left_out}
    error, freedom = add_image_variance(error, freedom, image_variance)
    facts["image_variance"] = image_variance
    return _effect(float(differences.mean()), sd, error, freedom, level, **facts)


def add_image_variance(error: float, freedom: float, image_variance: float) -> tuple[float, float]:
    """Return standard error and degrees of freedom of a mean over seeds after adding a variance over images.

    Satterthwaite's approximation, with infinite degrees of freedom of the images.

    >>> add_image_variance(1.0, 4.0, 3.0)
    (2.0, 64.0)
    """
    if not image_variance > 0:
        return error, freedom
    variance = error**2 + image_variance
    return math.sqrt(variance), min(variance**2 / error**4 * freedom, 1e9) if error > 0 else 1e9


def _unpaired(variant: np.ndarray, baseline: np.ndarray, level: float, image_variance: float) -> Effect:
    variances = np.array([variant.var(ddof=1), baseline.var(ddof=1)])
    counts = np.array([len(variant), len(baseline)])
    errors, dfs = np.sqrt(variances / counts), counts - 1
    error, freedom = welch_error((errors[0], errors[1]), (dfs[0], dfs[1]))
    difference, sd = float(variant.mean() - baseline.mean()), float(np.sqrt(variances.sum()))
    of_both = add_image_variance(float(error), float(freedom), image_variance)
    facts: dict[str, Any] = {"seeds": int(counts.min()), "each": {}, "paired": False, "left_out": ()}
    return _effect(difference, sd, *of_both, level, **facts, image_variance=image_variance)


def _effect(difference: float, sd: float, error: float, freedom: float, level: float, **facts: Any) -> Effect:
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error
    exact = 1.0 if difference == 0 else 0.0  # the difference is the same in every pair
    p = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error > 0 else exact
    smallest = detectable(error, freedom, level)
    return Effect(difference, difference - half, difference + half, sd, p, detectable=smallest, **facts)


def detectable(error: float, freedom: float, level: float = 0.05, power: float = POWER) -> float:
    """Compute the true difference for which the interval lies above 0 with probability ``power``, by noncentral t.

    Args:
        error: standard error of the difference, at least 0.
        freedom: degrees of freedom, at least 1.
        level: 1 − confidence of the interval.
        power: in (level / 2, 1).

    >>> round(detectable(1 / 3 ** 0.5, 2), 2)  # three pairs whose differences have a standard deviation of 1
    3.26
    """
    limit = float(stats.t.ppf(1 - level / 2, freedom))

    def short(distance: float) -> float:
        return float(stats.nct.sf(limit, freedom, distance)) - power

    return error * float(optimize.brentq(short, 0.0, 20 * limit))
