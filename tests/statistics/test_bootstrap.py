"""Bootstrap intervals: those of SciPy, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from tokenlens.statistics.bootstrap import bootstrap_interval


def test_the_interval_is_scipys():
    values = np.random.RandomState(0).normal(size=(60, 1)) + 1
    low, high = bootstrap_interval(values, lambda sums: sums / 60)
    settings = {"method": "percentile", "n_resamples": 20000, "random_state": np.random.RandomState(0)}
    expected = scipy.stats.bootstrap((values[:, 0],), np.mean, **settings).confidence_interval
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.03)  # 2000 draws
    again, _ = bootstrap_interval(values, lambda sums: sums / 60)
    assert again == low


def test_one_image_has_no_interval():
    low, high = bootstrap_interval(np.ones((1, 2)), lambda sums: sums)
    assert np.isnan(low).all()
    assert np.isnan(high).all()
