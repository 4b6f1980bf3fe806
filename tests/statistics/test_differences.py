"""Tests of differences between two sets of images: exact against SciPy, and false discoveries as rare as promised."""

# Shapes: N images, S numbers.

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tokenlens.statistics.differences import compare_intervals, compare_paired, compare_unpaired, q_values


def draws(seed: int = 0, n: int = 12, numbers: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(n, 1))
    return image + generator.normal(0.3, 1, (n, numbers)), image + generator.normal(0, 2, (n, numbers))


def test_paired_differences_are_scipys():
    one, two = draws()
    one[3, :7] = np.nan
    two[5, 5:9] = np.inf
    found = compare_paired(one, two)
    for i in range(one.shape[1]):
        both = np.isfinite(one[:, i]) & np.isfinite(two[:, i])
        expected = stats.ttest_rel(one[both, i], two[both, i])
        interval = expected.confidence_interval()
        difference = (one - two)[both, i].mean()
        np.testing.assert_allclose(
            [found.difference[i], found.p[i], found.ci_low[i], found.ci_high[i], found.n[i]],
            [difference, expected.pvalue, interval.low, interval.high, both.sum()],
            rtol=1e-9,
        )
        spread = np.sqrt((one[both, i].var(ddof=1) + two[both, i].var(ddof=1)) / 2)
        assert found.effect[i] == pytest.approx(difference / spread)


def test_unpaired_differences_are_scipys():
    one, two = draws()[0], draws(1, n=7)[1]
    sides = [(x.mean(0), x.std(0, ddof=1), np.full(40, len(x))) for x in (one, two)]
    found = compare_unpaired(*sides[0], *sides[1])
    expected = stats.ttest_ind(one, two, equal_var=False)
    interval = expected.confidence_interval()
    for got, wanted in ((found.p, expected.pvalue), (found.ci_low, interval.low), (found.ci_high, interval.high)):
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
    np.testing.assert_array_equal(found.n_baseline, 7)


def test_intervals_of_means_give_the_same_test_as_the_images():
    """With up to twenty images the jackknife of a mean is Student's interval, so both must agree."""
    one, two = draws(n=12)[0], draws(1, n=7)[1]
    sides = [(x.mean(0), stats.sem(x) * stats.t.ppf(0.975, len(x) - 1), np.full(40, len(x))) for x in (one, two)]
    found = compare_intervals(*sides[0], *sides[1])
    np.testing.assert_allclose(found.p, stats.ttest_ind(one, two, equal_var=False).pvalue, rtol=1e-9)
    assert np.isnan(found.effect).all()


def test_the_correction_is_benjamini_and_hochbergs():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(q_values(p), [0.04, np.nan, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert np.isnan(q_values(np.full(3, np.nan))).all()
    assert len(q_values(np.zeros(0))) == 0


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_false_discoveries_are_as_rare_as_promised(kind):
    """400 comparisons of 300 numbers on 20 images (seed 0), of which none, or 60, really differ."""
    generator = np.random.default_rng(0)
    for real_ones in (0, 60):
        shares, found_ones = [], []
        for _ in range(400):
            one, two = generator.normal(size=(2, 20, 300))
            one[:, :real_ones] += 1.5
            sides = [(x.mean(0), x.std(0, ddof=1), np.full(300, 20)) for x in (one, two)]
            found = compare_paired(one, two) if kind == "paired" else compare_unpaired(*sides[0], *sides[1])
            significant = q_values(found.p) < 0.05
            shares.append(significant[real_ones:].sum() / max(significant.sum(), 1))
            found_ones.append(significant[:real_ones].mean() if real_ones else 1)
        assert np.mean(shares) < 0.05 + 3 * np.std(shares) / np.sqrt(len(shares))
        assert np.mean(found_ones) > 0.8


def test_intervals_cover_what_they_should():
    generator = np.random.default_rng(0)
    one, two = generator.normal(0.5, 1, (15, 4000)), generator.normal(0, 3, (15, 4000))
    found = compare_paired(one, two)
    assert np.mean((found.ci_low < 0.5) & (found.ci_high > 0.5)) == pytest.approx(0.95, abs=0.012)


def test_what_rounding_can_do_counts_as_zero_and_no_spread_is_no_test():
    one = 100 + np.random.default_rng(0).normal(size=(50, 4))
    two = one.copy()
    two[:, 0] *= 1 + 5e-6  # in every image, so any plain t test is sure of it
    two[:, 1] *= 1 + 1e-3
    one[:, 2], two[:, 2] = 1, 2
    one[:, 3], two[:, 3] = 3, 3
    found = compare_paired(one, two)
    assert stats.ttest_rel(one[:, 0], two[:, 0]).pvalue < 1e-90
    assert found.p[0] == 1
    assert found.p[1] < 1e-90
    assert np.isnan([found.p[2], found.ci_low[2], found.effect[2]]).all()
    assert found.difference[2] == -1
    assert found.p[3] == 1
    assert np.isnan(found.effect[3])
