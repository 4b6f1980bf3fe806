"""The power of F3: which true gain would be called supported, given the observed spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tokenlens.statistics.seed_effects import MIN_SEEDS, MOST_SEEDS, POWER, Effect
from tokenlens.verification.rules import MAX_LOSS, MIN_GAIN

EXPERIMENTS = 4000
"""Simulated experiments; the share of a power of 0.8 has a standard error of 0.006."""


@dataclass(frozen=True)
class Spread:
    """Spread of the differences of mean IoU and accuracy between matched models, in points.

    Attributes:
        seeds: number of pairs.
        sd: standard deviation over seeds, of mean IoU and of accuracy.
        correlation: of the two over seeds.
        image_variance: variance of the mean difference over test images, of mean IoU and of accuracy.
    """

    seeds: int
    sd: tuple[float, float]
    correlation: float
    image_variance: tuple[float, float]


def spread_of(dense: Effect, accuracy: Effect) -> Spread | None:
    """Return the spread behind two effects; None unless both are of the same at least three matched seeds."""
    if not (dense.enough and dense.paired and accuracy.paired and dense.each.keys() == accuracy.each.keys()):
        return None
    one, other = (np.array(list(effect.each.values())) for effect in (dense, accuracy))
    varies = one.std() > 0 and other.std() > 0
    correlation = float(np.corrcoef(one, other)[0, 1]) if varies else 0.0
    variances = (dense.image_variance, accuracy.image_variance)
    return Spread(dense.seeds, (dense.sd, accuracy.sd), correlation, variances)


def smallest_gains(spread: Spread, seed: int = 0) -> np.ndarray:
    """Simulate experiments, and return for each the true gain above which it would support F3; infinity for none.

    The differences of a seed are drawn from a normal distribution with the observed covariance, no true change of
    accuracy, and independent errors of the two sets of test images. Covariances over seeds are drawn from Wishart's
    distribution (Bartlett's decomposition).
    """
    random = np.random.default_rng(seed)
    n, correlation = spread.seeds, spread.correlation
    lower = np.array([[1.0, 0.0], [correlation, math.sqrt(max(0.0, 1 - correlation**2))]])
    lower *= np.array(spread.sd)[:, None]
    errors = random.normal(size=(EXPERIMENTS, 2)) @ lower.T / math.sqrt(n)
    errors += random.normal(size=(EXPERIMENTS, 2)) * np.sqrt(spread.image_variance)
    bartlett = np.zeros((EXPERIMENTS, 2, 2))
    bartlett[:, 0, 0] = np.sqrt(random.chisquare(n - 1, EXPERIMENTS))
    bartlett[:, 1, 1] = np.sqrt(random.chisquare(n - 2, EXPERIMENTS))
    bartlett[:, 1, 0] = random.normal(size=EXPERIMENTS)
    variances = ((lower @ bartlett) ** 2).sum(2) / (n - 1) / n
    total = variances + np.array(spread.image_variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(variances > 0, total**2 / variances**2 * (n - 1), 1e9)
    half = stats.t.ppf(0.975, np.minimum(freedom, 1e9)) * np.sqrt(total)
    gains = np.maximum(half[:, 0], MIN_GAIN - half[:, 0]) - errors[:, 0]
    return np.where(errors[:, 1] - half[:, 1] >= -MAX_LOSS, gains, np.inf)


def detectable_gain(spread: Spread) -> float:
    """Compute the true gain that 80 % of experiments call supported; infinity if accuracy alone prevents that."""
    return float(np.quantile(smallest_gains(spread), POWER, method="higher"))


def detectable_range(spread: Spread) -> tuple[float, float]:
    """Compute the detectable gain for both ends of the 95 % interval of a standard deviation from so few seeds (χ²)."""
    freedom = spread.seeds - 1
    ends = [math.sqrt(freedom / stats.chi2.ppf(share, freedom)) for share in (0.975, 0.025)]
    low, high = (detectable_gain(replace(spread, sd=(factor * spread.sd[0], factor * spread.sd[1]))) for factor in ends)
    return low, high


def seeds_for(spread: Spread, gain: float) -> int | None:
    """Return the fewest pairs with which ``gain`` is detected, at least three; None if no number suffices."""
    low, high = MIN_SEEDS, MOST_SEEDS
    if detectable_gain(replace(spread, seeds=high)) > gain:
        return None
    while low < high:
        middle = (low + high) // 2
        if detectable_gain(replace(spread, seeds=middle)) <= gain:
            high = middle
        else:
            low = middle + 1
    return low
