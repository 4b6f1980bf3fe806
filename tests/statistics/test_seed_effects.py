"""Effects over seeds: intervals are SciPy's, and the power is the stated one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tokenlens.statistics.seed_effects import detectable, estimate_effect


@pytest.mark.parametrize("seeds", [3, 4, 8])
def test_the_detectable_effect_is_found_in_four_of_five_experiments(seeds):
    true = detectable(1.5 / math.sqrt(seeds), seeds - 1)
    pairs = np.random.default_rng(7).normal(true, 1.5, (4000, seeds))
    low = stats.ttest_1samp(pairs, 0, axis=1).confidence_interval().low
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.02)
    for each, expected in zip(pairs[:5], low, strict=False):
        assert estimate_effect(dict(enumerate(each)), dict.fromkeys(range(seeds), 0.0)).low == pytest.approx(expected)


def test_seeds_of_two_experiments_without_a_common_one_are_compared_by_welchs_test():
    one, two = np.random.default_rng(0).normal(size=(2, 4))
    effect = estimate_effect(dict(enumerate(one)), dict(enumerate(two[:3], start=4)))
    expected = stats.ttest_ind(one, two[:3], equal_var=False)
    interval = expected.confidence_interval()
    assert (effect.low, effect.high, effect.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert not effect.paired
    assert effect.seeds == 3
