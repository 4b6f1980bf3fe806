"""Streaming moments and the two kinds of interval: exact against NumPy, and right 95 times in 100."""

# Shapes: B images, S series, G groups of images.

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenlens.statistics.moments import JACKKNIFE_GROUPS, Moments, jackknife_interval

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


def cut(values: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(values, sorted(place % (len(values) + 1) for place in places))


@FEW
@given(images=st.integers(1, 30), places=st.lists(st.integers(0, 100), max_size=5), seed=st.integers(0, 2**31))
def test_moments_are_numpys_however_they_are_cut(images, places, seed):
    values = np.random.default_rng(seed).normal(3, 2, size=(images, 4))
    moments = seen(*cut(values, places))
    assert moments.n.tolist() == [images] * 4
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    if images > 1:
        np.testing.assert_allclose(moments.sd, values.std(0, ddof=1), rtol=1e-10)
    else:
        assert np.isnan(moments.sd).all()


@FEW
@given(images=st.integers(1, 30), place=st.integers(0, 100), seed=st.integers(0, 2**31))
def test_merging_is_seeing_it_all(images, place, seed):
    values = np.random.default_rng(seed).normal(size=(images, 3))
    values[np.random.default_rng(seed + 1).random(values.shape) < 0.2] = np.nan
    first, second = cut(values, [place])
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


def test_the_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=(9, 2))
    low, high = seen(values).interval()
    expected = stats.t.interval(0.95, 8, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose([low, high], expected)
    low, high = seen(values).interval(0.5)
    np.testing.assert_allclose([low, high], stats.t.interval(0.5, 8, loc=values.mean(0), scale=stats.sem(values)))


def test_the_interval_holds_the_truth_95_times_in_100():
    """Eight images, 4000 series at once; 95 % ± 1.4 % is four standard errors."""
    values = np.random.default_rng(0).normal(2, 3, size=(8, 4000))
    low, high = seen(values).interval()
    assert np.mean((low < 2) & (high > 2)) == pytest.approx(0.95, abs=0.014)


# -- jackknife


def grouped(images: int) -> np.ndarray:
    return np.arange(images) % JACKKNIFE_GROUPS


def jackknife(values_B: np.ndarray, statistic) -> tuple[float, float, float]:
    """As the metrics do it: images dealt into groups by index, each group that has images left out once."""
    groups = grouped(len(values_B))
    present = np.unique(groups)
    left_out = np.array([statistic(values_B[groups != group]) for group in present])
    counts = np.array([(groups == group).sum() for group in present])
    value = np.array(statistic(values_B))
    low, high = jackknife_interval(value, left_out, counts)
    return float(value), float(low), float(high)


@FEW
@given(images=st.integers(3, JACKKNIFE_GROUPS), seed=st.integers(0, 2**31))
def test_up_to_20_images_it_leaves_out_one(images, seed):
    """The textbook's: (n−1)/n · Σ (θ_(i) − mean θ_(i))²."""
    values = np.random.default_rng(seed).normal(size=images)
    statistic = lambda x: np.exp(np.mean(x)) / np.var(x)  # noqa: E731
    value, low, high = jackknife(values, statistic)
    left_out = np.array([statistic(np.delete(values, image)) for image in range(images)])
    error = np.sqrt((images - 1) / images * np.sum((left_out - left_out.mean()) ** 2))
    half = stats.t.ppf(0.975, images - 1) * error
    assert low == pytest.approx(value - half, rel=1e-9, abs=1e-9)
    assert high == pytest.approx(value + half, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("images", [5, 20])
def test_of_a_mean_it_is_students(images):
    values = np.random.default_rng(0).normal(size=images)
    _, low, high = jackknife(values, np.mean)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, images - 1, values.mean(), stats.sem(values)))


def test_groups_of_unequal_size_follow_busing_and_others():
    """30 images in 20 groups of one or two: the delete-m_j jackknife of Busing and others (1999), written out."""
    values = np.random.default_rng(0).exponential(size=30)
    statistic = lambda x: np.log(np.mean(x))  # noqa: E731
    n, groups = 30, grouped(30)
    theta = statistic(values)
    left_out, sizes = zip(
        *[(statistic(values[groups != group]), (groups == group).sum()) for group in range(20)], strict=True
    )
    jackknifed = 20 * theta - sum((1 - m / n) * t for m, t in zip(sizes, left_out, strict=True))
    variance = np.mean(
        [
            (n / m * theta - (n / m - 1) * t - jackknifed) ** 2 / (n / m - 1)
            for m, t in zip(sizes, left_out, strict=True)
        ]
    )
    value, low, high = jackknife(values, statistic)
    half = stats.t.ppf(0.975, 19) * np.sqrt(variance)
    assert (value, low, high) == pytest.approx((theta, theta - half, theta + half))


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_fewer_than_three_groups_give_no_interval(groups):
    low, high = jackknife_interval(np.zeros(3), np.zeros((groups, 3)), np.ones(groups, dtype=np.int64))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == (3,)


def test_many_statistics_at_once():
    values = np.random.default_rng(0).normal(size=(7, 2, 3))
    left_out = np.stack([np.delete(values, image, axis=0).mean(0) for image in range(7)])
    low, high = jackknife_interval(values.mean(0), left_out, np.ones(7, dtype=np.int64))
    for i in range(2):
        for j in range(3):
            expected = stats.t.interval(0.95, 6, values[:, i, j].mean(), stats.sem(values[:, i, j]))
            assert (low[i, j], high[i, j]) == pytest.approx(expected)


def pair_cosine(unit_BD: np.ndarray) -> float:
    n = len(unit_BD)
    return float(((unit_BD.sum(0) ** 2).sum() - n) / (n * (n - 1)))


@pytest.mark.parametrize("images", [12, 30, 50])
def test_the_jackknife_holds_the_truth_about_95_times_in_100(images):
    """The mean pair cosine, as in cls_cls_cosine; below, at and between whole groups. Its truth is ‖E u‖²."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        x = generator.normal(size=(count, 8)) + 1
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    truth = float((draw(400_000).mean(0) ** 2).sum())
    inside = []
    for _ in range(600):
        _, low, high = jackknife(draw(images), pair_cosine)
        inside.append(low < truth < high)
    assert 0.91 <= np.mean(inside) <= 0.985
