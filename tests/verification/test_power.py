"""The power of F3 is the share of experiments that its rule calls supported."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tokenlens.statistics.seed_effects import estimate_effect
from tokenlens.verification.findings import f3_verdict
from tokenlens.verification.power import Spread, detectable_gain, detectable_range, seeds_for, spread_of

SPREAD = Spread(6, (0.8, 0.4), 0.5, (0.05, 0.02))


def share_supported(spread, gain, experiments=600):
    """Judge simulated experiments with the rule itself."""
    random = np.random.default_rng(3)
    covariance = np.diag(spread.sd) @ [[1, spread.correlation], [spread.correlation, 1]] @ np.diag(spread.sd)
    supported = 0
    for _ in range(experiments):
        pairs = random.multivariate_normal([gain, 0], covariance, spread.seeds)
        pairs += random.normal(size=2) * np.sqrt(spread.image_variance)
        zeros = dict.fromkeys(range(spread.seeds), 0.0)
        effects = [
            estimate_effect(dict(enumerate(each)), zeros, image_variance=variance)
            for each, variance in zip(pairs.T, spread.image_variance, strict=True)
        ]
        supported += f3_verdict(*effects) == "supported"
    return supported / experiments


def test_the_detectable_gain_is_supported_in_four_of_five_experiments():
    assert share_supported(SPREAD, detectable_gain(SPREAD)) == pytest.approx(0.8, abs=0.05)


def test_a_noisy_accuracy_leaves_nothing_to_detect():
    noisy = replace(SPREAD, sd=(0.1, 2.0))
    assert math.isinf(detectable_gain(noisy))
    assert share_supported(noisy, 50.0, 200) < 0.8
    assert seeds_for(noisy, 2.0) > 6


def test_more_seeds_detect_less_and_the_range_holds_the_gain():
    gains = [detectable_gain(replace(SPREAD, seeds=seeds)) for seeds in (4, 8, 16)]
    assert gains == sorted(gains, reverse=True)
    low, high = detectable_range(SPREAD)
    assert low < detectable_gain(SPREAD) < high
    needed = seeds_for(SPREAD, 1.0)
    assert detectable_gain(replace(SPREAD, seeds=needed)) <= 1.0 < detectable_gain(replace(SPREAD, seeds=needed - 1))


def test_a_spread_needs_the_same_matched_seeds_of_both():
    one = estimate_effect({0: 1.0, 1: 2.0, 2: 4.0}, dict.fromkeys(range(3), 0.0), image_variance=0.2)
    other = estimate_effect({0: 2.0, 1: 4.0, 2: 8.0}, dict.fromkeys(range(3), 0.0))
    spread = spread_of(one, other)
    assert spread.sd == pytest.approx((one.sd, 2 * one.sd))
    assert spread.correlation == pytest.approx(1)
    assert spread.image_variance == (0.2, 0.0)
    assert spread_of(one, estimate_effect({0: 1.0}, {0: 0.0})) is None
