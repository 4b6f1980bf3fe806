"""Intervals over seeds and test images: the variance over images is that of a bootstrap, in pandas."""

from __future__ import annotations

import numpy as np
import pytest

from tests.verification.conftest import knn_hits
from tokenlens.statistics.seed_effects import estimate_effect
from tokenlens.verification.image_draws import image_variance
from tokenlens.verification.numbers import compare_scores, contrast_scores
from tokenlens.verification.runs import read_runs


def test_the_variance_of_accuracy_over_images_is_that_of_the_mean(found):
    """For an accuracy it is the variance of the differences per image, divided by their number."""
    runs = read_runs([found.path])
    each = 100 * (knn_hits(found.path, "paper") - knn_hits(found.path, "standard"))
    setting = runs.numbers["setting"].iloc[0]
    rows = runs.numbers[runs.numbers["measure"] == "accuracy"]
    drawn = image_variance(runs.drawn, rows, {"paper": 1, "standard": -1})
    assert drawn == pytest.approx(each.var() / len(each), rel=0.15, abs=1e-9)
    effect = compare_scores(runs.numbers, setting, "paper", "standard", "accuracy", drawn=runs.drawn)
    alone = compare_scores(runs.numbers, setting, "paper", "standard", "accuracy")
    assert effect.image_variance == drawn
    assert effect.difference == alone.difference
    assert effect.high - effect.low >= 0


def test_a_contrast_of_two_is_their_difference(found):
    runs = read_runs([found.path])
    setting = runs.numbers["setting"].iloc[0]
    one = compare_scores(runs.numbers, setting, "paper", "standard", "mIoU", drawn=runs.drawn)
    other = contrast_scores(runs.numbers, setting, {"paper": 1, "standard": -1}, "mIoU", runs.drawn)
    assert (one.difference, one.low, one.high) == pytest.approx((other.difference, other.low, other.high))


@pytest.mark.parametrize(("seeds", "between", "images"), [(3, 0.3, 0.3), (5, 0.3, 0.0), (8, 0.1, 0.5)])
def test_the_interval_covers_other_seeds_and_images(seeds, between, images):
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        scores = random.normal(0, between, (seeds, 1)) + random.normal(0, images * 10, 100)
        variance = scores.mean(0).var(ddof=1) / 100
        each = dict(enumerate(scores.mean(1)))
        effect = estimate_effect(each, dict.fromkeys(each, 0.0), image_variance=variance)
        covered += effect.low <= 0 <= effect.high
    assert covered / 500 >= 0.92
