"""Jackknife intervals: the textbook's, and right about 95 times in 100."""

# Shapes: B images, D channels.

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS, jackknife_interval

FEW = settings(max_examples=30, deadline=None)


def grouped(images: int) -> np.ndarray:
    return np.arange(images) % JACKKNIFE_GROUPS


def jackknife(values_B: np.ndarray, statistic) -> tuple[float, float, float]:
    """Divide images into groups by index, as the metrics do, and leave out each group once."""
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


def test_groups_of_unequal_size_follow_busing_and_others():
    """30 images in 20 groups of one or two: the delete-m_j jackknife of Busing and others (1999), written out."""
    values = np.random.default_rng(0).exponential(size=30)
    statistic = lambda x: np.log(np.mean(x))  # noqa: E731
    n, groups = 30, grouped(30)
    theta = statistic(values)
    left_out, sizes = zip(
        *[(statistic(values[groups != group]), (groups == group).sum()) for group in range(20)], strict=True
    )
    pairs = list(zip(sizes, left_out, strict=True))
    jackknifed = 20 * theta - sum((1 - m / n) * t for m, t in pairs)
    variance = np.mean([(n / m * theta - (n / m - 1) * t - jackknifed) ** 2 / (n / m - 1) for m, t in pairs])
    value, low, high = jackknife(values, statistic)
    half = stats.t.ppf(0.975, 19) * np.sqrt(variance)
    assert (value, low, high) == pytest.approx((theta, theta - half, theta + half))


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_fewer_than_three_groups_give_no_interval(groups):
    low, high = jackknife_interval(np.zeros(3), np.zeros((groups, 3)), np.ones(groups, dtype=np.int64))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == (3,)


@pytest.mark.parametrize("images", [5, 20])
def test_of_means_it_is_students_many_at_once(images):
    values = np.random.default_rng(0).normal(size=(images, 2, 3))
    left_out = np.stack([np.delete(values, image, axis=0).mean(0) for image in range(images)])
    interval = jackknife_interval(values.mean(0), left_out, np.ones(images, dtype=np.int64))
    np.testing.assert_allclose(interval, stats.t.interval(0.95, images - 1, values.mean(0), stats.sem(values)))


@pytest.mark.parametrize("images", [12, 30, 50])
def test_the_interval_covers_the_value_about_95_times_in_100(images):
    """The mean pair cosine, as in cls_cls_cosine; below, at and between whole groups. Its truth is ‖E u‖²."""
    generator = np.random.default_rng(0)

    def pair_cosine(unit_BD: np.ndarray) -> float:
        n = len(unit_BD)
        return float(((unit_BD.sum(0) ** 2).sum() - n) / (n * (n - 1)))

    def draw(count: int) -> np.ndarray:
        x = generator.normal(size=(count, 8)) + 1
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    truth = float((draw(400_000).mean(0) ** 2).sum())
    inside = []
    for _ in range(600):
        _, low, high = jackknife(draw(images), pair_cosine)
        inside.append(low < truth < high)
    assert 0.91 <= np.mean(inside) <= 0.985
