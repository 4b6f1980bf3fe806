"""Streaming moments and their interval: exact against NumPy, and right 95 times in 100."""

# Shapes: B images, S numbers.

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenlens.statistics.moments import UNSEEN, Moments, cut_interval, hall_transform

FEW = settings(max_examples=30, deadline=None)


def seen(*batches: np.ndarray) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


def same(one: Moments, two: Moments) -> None:
    np.testing.assert_array_equal(one.n, two.n)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.sd, two.sd, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.skewness, two.skewness, rtol=1e-7, atol=1e-7)


def cut(values: np.ndarray, ends: list[int]) -> list[np.ndarray]:
    return np.split(values, sorted(end % (len(values) + 1) for end in ends))


@FEW
@given(images=st.integers(1, 30), ends=st.lists(st.integers(0, 100), max_size=5), seed=st.integers(0, 2**31))
def test_moments_are_numpys_however_they_are_cut(images, ends, seed):
    values = np.random.default_rng(seed).normal(3, 2, size=(images, 4))
    moments = seen(*cut(values, ends))
    assert moments.n.tolist() == [images] * 4
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    if images > 1:
        np.testing.assert_allclose(moments.sd, values.std(0, ddof=1), rtol=1e-10)
    else:
        assert np.isnan(moments.sd).all()


@FEW
@given(images=st.integers(1, 30), end=st.integers(0, 100), seed=st.integers(0, 2**31))
def test_merging_equals_one_pass(images, end, seed):
    values = np.random.default_rng(seed).normal(size=(images, 3))
    values[np.random.default_rng(seed + 1).random(values.shape) < 0.2] = np.nan
    first, second = cut(values, [end])
    merged, reverse = seen(first), seen(second)
    merged.merge(seen(second))
    reverse.merge(seen(first))
    same(merged, seen(values))
    same(reverse, seen(values))


def test_merging_with_nothing():
    values = np.arange(6.0).reshape(3, 2)
    for one, two in ((seen(values), Moments()), (Moments(), seen(values))):
        one.merge(two)
        same(one, seen(values))
    nothing = Moments()
    nothing.merge(Moments())
    assert len(nothing.n) == 0


def test_undefined_values_are_not_counted():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan], [8.0, 5.0]])
    moments = seen(values[:1], values[1:3], values[3:])
    assert moments.n.tolist() == [3, 1]
    assert moments.mean.tolist() == [4, 5]
    assert moments.sd[0] == pytest.approx(np.std([1, 3, 8], ddof=1))
    assert np.isnan(moments.sd[1])
    low, high = moments.interval()
    assert np.isfinite([low[0], high[0]]).all()
    assert np.isnan([low[1], high[1]]).all()


def test_a_small_spread_around_a_large_mean_does_not_cancel():
    values = 1e9 + np.random.default_rng(0).normal(size=(1000, 1))
    moments = seen(*np.split(values, 10))
    assert moments.sd[0] == pytest.approx(values.std(ddof=1), rel=1e-6)


def test_without_skewness_the_interval_is_scipys():
    values = np.array([[-3.0, 0.0], [-1.0, 1.0], [0.0, 2.0], [1.0, 3.0], [3.0, 4.0]])
    for level in (0.95, 0.5):
        expected = stats.t.interval(level, 4, loc=values.mean(0), scale=stats.sem(values))
        np.testing.assert_allclose(seen(values).interval(level), expected)


def test_the_skewness_is_scipys():
    values = np.random.default_rng(0).exponential(size=(11, 3))
    np.testing.assert_allclose(seen(*np.split(values, [4, 7])).skewness, stats.skew(values, bias=False))
    assert seen(values[:2]).skewness.tolist() == [0, 0, 0]
    assert seen(np.ones((5, 2))).skewness.tolist() == [0, 0]


def test_the_transformation_is_inverted():
    gamma, n = np.array([-3.0, 0.5, 2.0, 1e-5]), np.array([10, 10, 10, 10])
    quantile = np.array([0.7, 0.3, -0.4, 0.2])
    x = hall_transform(quantile, gamma, n)
    np.testing.assert_allclose(x + gamma * x**2 / 3 + gamma**2 * x**3 / 27 + gamma / (6 * n), quantile, atol=1e-5)


def test_the_interval_is_never_narrower_than_students_and_longer_on_the_side_of_the_skewness():
    values = np.random.default_rng(0).exponential(size=(8, 200))
    low, high = seen(values).interval()
    expected = stats.t.interval(0.95, 7, loc=values.mean(0), scale=stats.sem(values))
    assert (low <= expected[0] + 1e-12).all()
    assert (high >= expected[1] - 1e-12).all()
    assert (high - expected[1]).mean() > 3 * (expected[0] - low).mean()


def test_bounded_numbers_leave_room_for_images_of_a_kind_not_seen():
    values = np.zeros((10, 2))
    low, high = seen(values).interval(ranges=np.array([1.0, 0.0]))
    assert high.tolist() == pytest.approx([UNSEEN / 10, 0])
    assert low.tolist() == pytest.approx([-UNSEEN / 10, 0])
    # An interval that is wider anyway stays as it is, unless its numbers are skewed.
    values = np.stack([np.arange(-5.0, 6.0), np.random.default_rng(0).exponential(size=11)], axis=1)
    without, with_allowance = seen(values).interval(), seen(values).interval(ranges=np.array([2.0, 2.0]))
    assert without[1][0] == with_allowance[1][0]
    assert without[1][1] < with_allowance[1][1]


def test_skewed_numbers_are_covered():
    """Student's interval covers the mean of lognormal numbers 85 times in 100 at n = 8."""
    values = np.random.default_rng(0).lognormal(size=(8, 4000))
    low, high = seen(values).interval()
    truth = np.exp(0.5)
    student = stats.t.interval(0.95, 7, loc=values.mean(0), scale=stats.sem(values))
    assert np.mean((student[0] < truth) & (student[1] > truth)) < 0.86
    assert np.mean((low < truth) & (high > truth)) > 0.9


def test_the_interval_covers_the_mean_95_times_in_100():
    """Eight images, 4000 numbers at once; by the skewness of so few it covers a little more."""
    values = np.random.default_rng(0).normal(2, 3, size=(8, 4000))
    low, high = seen(values).interval()
    assert np.mean((low < 2) & (high > 2)) == pytest.approx(0.96, abs=0.004)


@FEW
@given(st.floats(-0.2, 1.2), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1))
def test_an_interval_that_is_cut_keeps_its_estimate_and_every_possible_value(value, below, above, possible):
    given_low, given_high = np.array([value - below]), np.array([value + above])
    low, high = cut_interval(np.array([value]), given_low, given_high, np.array([[0.0, 1.0]]))
    assert given_low <= low <= value <= high <= given_high
    assert low >= 0 or low == value
    assert high <= 1 or high == value
    assert (low <= possible <= high) == (given_low <= possible <= given_high) or not given_low <= possible <= given_high
    undefined = cut_interval(np.array([value]), *np.full((2, 1), np.nan), np.array([[0.0, 1.0]]))
    assert np.isnan(undefined).all()
