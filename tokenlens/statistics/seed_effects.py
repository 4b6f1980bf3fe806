"""What a few trained models say of a difference: Student's t over seeds, and the smallest effect it could have shown.

The seed is the unit: a model trained once more, from other weights and with other draws. How many images it was tested
on does not enter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

MIN_SEEDS = 3
"""Fewer trained models of a kind give no verdict."""

POWER = 0.8
"""Share of cases in which a difference that is as large as ``detectable`` is found."""

MOST_SEEDS = 1000
"""``seeds_needed`` looks no further."""


@dataclass(frozen=True)
class Effect:
    """How much larger one thing is than another, over trained models.

    Attributes:
        difference: mean over seeds; NaN without any.
        low: lower end of its interval; NaN with one seed.
        high: upper end.
        sd: of the differences over pairs; of unpaired models sqrt(variance + variance). NaN with one seed.
        p: two-sided, of no difference; NaN with one seed.
        seeds: how many pairs; of unpaired models the smaller count.
        each: the difference of each pair, by seed; empty where it is not paired.
        paired: whether both were trained from the same seeds.
        left_out: seeds that only one of the two has, and so are not used.
        detectable: smallest difference that would be found with 80 % power; NaN with one seed.
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

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough for a verdict."""
        return self.seeds >= MIN_SEEDS


def effect_of(variant: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> Effect:
    """The difference of two kinds of models.

    Paired by seed where at least three seeds are in both, or where Welch's test of unpaired models would have fewer
    than three of each.

    Args:
        variant: a number of each model, by seed.
        baseline: of each model that it is set against.
        confidence: of the interval.
    """
    common = sorted(set(variant) & set(baseline))
    level = 1 - confidence
    if len(common) < MIN_SEEDS <= min(len(variant), len(baseline)):
        return _unpaired(np.array(list(variant.values())), np.array(list(baseline.values())), level)
    each = {seed: float(variant[seed] - baseline[seed]) for seed in common}
    left_out = tuple(sorted(set(variant) ^ set(baseline)))
    differences = np.array(list(each.values()))
    if len(differences) < 2:
        difference = float(differences.mean()) if len(differences) else math.nan
        nan = math.nan
        return Effect(difference, nan, nan, nan, nan, len(differences), each, True, left_out, nan)
    sd = float(differences.std(ddof=1))
    error, freedom = sd / math.sqrt(len(differences)), len(differences) - 1.0
    return _effect(float(differences.mean()), sd, error, freedom, level, len(differences), each, True, left_out)


def _unpaired(variant: np.ndarray, baseline: np.ndarray, level: float) -> Effect:
    variances = np.array([variant.var(ddof=1), baseline.var(ddof=1)])
    counts = np.array([len(variant), len(baseline)])
    parts = variances / counts
    # Welch–Satterthwaite
    freedom = float(parts.sum() ** 2 / (parts**2 / (counts - 1)).sum()) if parts.sum() > 0 else float(counts.sum() - 2)
    difference = float(variant.mean() - baseline.mean())
    sd, error = float(np.sqrt(variances.sum())), float(np.sqrt(parts.sum()))
    return _effect(difference, sd, error, freedom, level, int(counts.min()), {}, False, ())


def _effect(
    difference: float,
    sd: float,
    error: float,
    freedom: float,
    level: float,
    seeds: int,
    each: Mapping[int, float],
    paired: bool,
    left_out: tuple[int, ...],
) -> Effect:
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error
    exact = 1.0 if difference == 0 else 0.0  # models that differ by the same number in every pair
    p = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error > 0 else exact
    smallest = detectable(error, freedom, level)
    return Effect(difference, difference - half, difference + half, sd, p, seeds, each, paired, left_out, smallest)


def detectable(error: float, freedom: float, level: float = 0.05, power: float = POWER) -> float:
    """The true difference for which the interval lies above 0 in a share ``power`` of cases: noncentral t.

    Args:
        error: standard error of the difference, at least 0.
        freedom: degrees of freedom, at least 1.
        level: 1 − the interval's confidence.
        power: in (level / 2, 1).

    >>> round(detectable(1 / 3 ** 0.5, 2), 2)  # three pairs whose differences have a standard deviation of 1
    3.26
    """
    limit = float(stats.t.ppf(1 - level / 2, freedom))

    def short(distance: float) -> float:
        return float(stats.nct.sf(limit, freedom, distance)) - power

    return error * float(optimize.brentq(short, 0.0, 20 * limit))


def seeds_needed(sd: float, wanted: float, level: float = 0.05, power: float = POWER) -> int | None:
    """The fewest pairs (at least three) with which a difference of ``wanted`` is found; None beyond ``MOST_SEEDS``.

    Args:
        sd: standard deviation of the differences over pairs.
        wanted: above 0.

    >>> seeds_needed(1.0, 2.0), seeds_needed(1.0, 0.001) is None
    (5, True)
    """
    low, high = MIN_SEEDS, MOST_SEEDS
    if detectable(sd / math.sqrt(high), high - 1.0, level, power) > wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if detectable(sd / math.sqrt(middle), middle - 1.0, level, power) <= wanted:
            high = middle
        else:
            low = middle + 1
    return low
