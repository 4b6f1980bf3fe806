"""CKA, channel selectivity, centroid separation, effective rank and weight distance by construction."""

# Shapes: N images, T tokens, P patches, D channels.

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from tests.metrics._single_metric import feed, measure_norm, measure_tokens, numbers
from tokenlens.metrics import Subject
from tokenlens.metrics.cka import debiased_cka, debiased_hsic
from tokenlens.metrics.dimension_selectivity import dimension_selectivity, rank_correlation, top_overlap
from tokenlens.metrics.effective_rank import effective_rank
from tokenlens.metrics.weight_distance import WeightDistance, weight_distance
from tokenlens.tokens import TokenLayout

FEW = settings(max_examples=25, deadline=None)
LAYOUT = TokenLayout(grid=(2, 3))


def grams(*features: np.ndarray) -> np.ndarray:
    return np.stack([x @ x.T for x in features])


# -- CKA


@FEW
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_cka_is_1_with_itself_turned_shifted_and_scaled(seed, scale):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(12, 7)), generator.normal(size=(12, 5))
    rotation = np.linalg.qr(generator.normal(size=(7, 7)))[0]
    found = debiased_cka(grams(x, scale * (x @ rotation + 3), y))
    assert found[0, 0] == pytest.approx(1, abs=1e-12)
    assert found[0, 1] == pytest.approx(1, abs=1e-9)
    assert found[1, 2] == pytest.approx(found[0, 2], abs=1e-9)
    np.testing.assert_allclose(found, found.T)


def test_cka_of_independent_features_is_0_on_average():
    """The plain estimate is 0.75 here: 20 images, 64 channels."""
    generator = np.random.default_rng(0)
    values, plain = [], []
    for _ in range(300):
        gram = grams(generator.normal(size=(20, 64)), generator.normal(size=(20, 64)))
        values.append(debiased_cka(gram)[0, 1])
        a, b = (g - g.mean(0) - g.mean(1)[:, None] + g.mean() for g in gram)
        plain.append((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert error < 0.01
    assert np.mean(plain) > 0.6


def test_hsic_is_unbiased_over_the_choice_of_images():
    """The mean over all subsets of 5 of 7 images is the value of all 7: what makes it a U-statistic."""
    generator = np.random.default_rng(0)
    gram = grams(generator.normal(size=(7, 3)), generator.normal(size=(7, 4)))
    subsets = [debiased_hsic(gram[:, s][:, :, s]) for s in map(list, combinations(range(7), 5))]
    np.testing.assert_allclose(np.mean(subsets, axis=0), debiased_hsic(gram), atol=1e-12)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_cka_of_too_few_images_is_undefined(images):
    x = torch.randn(images, LAYOUT.tokens, 8, generator=torch.Generator().manual_seed(0))
    assert np.isnan(measure_tokens("cka", LAYOUT, x)["", "cls-patch"])


def test_cka_of_features_that_do_not_vary_is_undefined():
    x = torch.ones(6, LAYOUT.tokens, 8)
    x[:, 1:] = torch.randn(6, LAYOUT.patches, 8, generator=torch.Generator().manual_seed(0))
    metric = feed("cka", LAYOUT, 6, lambda s: s.tokens(0, "resid_post", x))
    assert np.isnan(numbers(metric)["", "cls-patch"])
    assert metric.arrays()["patch-patch"].values[0, 0] == pytest.approx(1)


# -- channels


def test_channels_that_belong_to_one_group_or_to_both():
    """Channel 0 belongs to CLS, channel 1 to the patches; 2 is equal, 3 is three times larger in CLS."""
    x = torch.zeros(4, LAYOUT.tokens, 4)
    x[:, 0] = torch.tensor([2.0, 0.0, -1.0, 3.0])
    x[:, 1:] = torch.tensor([0.0, -5.0, 1.0, 1.0])
    metric = feed("dimension_selectivity", LAYOUT, 4, lambda s: s.norm(0, "norm1", nn.LayerNorm(4), x, x))
    arrays = metric.arrays()
    np.testing.assert_allclose(arrays["input_norm1"].values, [[1, -1, 0, 0.5]])
    np.testing.assert_allclose(arrays["cls_input_norm1"].values, [[2, 0, 1, 3]])
    np.testing.assert_allclose(arrays["patch_input_norm1"].values, [[0, 5, 1, 1]])
    found = numbers(metric)
    assert found["input_mean", "cls-patch"] == pytest.approx(2.5 / 4)
    assert found["input_share", "cls-patch"] == pytest.approx(0.5)  # 0.5 itself does not exceed 0.5
    assert found["input_top_overlap", "cls-patch"] == 0
    found = measure_norm("dimension_selectivity", LAYOUT, x, nn.RMSNorm(4, elementwise_affine=False))
    assert not any("gamma" in part for part, _ in found)


@FEW
@given(cls=st.lists(st.floats(0, 1e6), min_size=1, max_size=8).map(np.array), seed=st.integers(0, 2**31))
def test_selectivity_is_bounded_and_antisymmetric(cls, seed):
    patch = np.random.default_rng(seed).exponential(size=len(cls))
    s = dimension_selectivity(cls, patch)
    assert (np.abs(s) <= 1).all()
    np.testing.assert_allclose(dimension_selectivity(patch, cls), -s)
    np.testing.assert_allclose(dimension_selectivity(cls * 7, patch * 7), s, atol=1e-12)


def test_overlap_of_the_largest_channels():
    first, second = np.arange(40.0), np.arange(40.0)
    assert top_overlap(first, second) == 1
    assert top_overlap(first, -second) == 0
    assert top_overlap(first, np.roll(second, 1)) == 0.5  # its largest two are at 0 and 39
    assert top_overlap(np.arange(4.0), np.arange(4.0)) == 1  # one channel at least


@FEW
@given(seed=st.integers(0, 2**31), ties=st.booleans())
def test_rank_correlation_is_scipys(seed, ties):
    x, y = np.random.default_rng(seed).normal(size=(2, 30))
    if ties:
        x = x.round()
    assert float(rank_correlation(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic)


# -- centroids


def cloud(offset: float, seed: int = 0, images: int = 24, channels: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, LAYOUT.tokens, channels, generator=generator, dtype=torch.float64)
    x[:, 0] = 0.5 * x[:, 0] + 1
    return x + offset


def separation(x: np.ndarray) -> float:
    """Without bias: of what the means' sampling adds to their squared distance, and takes from the traces."""
    cls, patch, n = x[:, 0], x[:, 1:].reshape(-1, x.shape[-1]), len(x)
    traces = sum(np.trace(np.cov(group.T, ddof=0)) for group in (cls, patch))
    means = [np.trace(np.cov(mean.T, ddof=1)) / n for mean in (x[:, 0], x[:, 1:].mean(1))]
    difference = np.trace(np.cov((x[:, 0] - x[:, 1:].mean(1)).T, ddof=1)) / n
    squared = np.sum((cls.mean(0) - patch.mean(0)) ** 2) - difference
    return float(np.sqrt(squared) / np.sqrt((traces + sum(means)) / 2))


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_centroid_separation_from_covariance_matrices(offset):
    """Channels whose mean is 100 times their spread, as in large ViTs, cost digits; no more than these."""
    x = cloud(offset, images=64, channels=384).float()
    expected = separation(x.double().numpy())
    relative = 3e-9 * (1 + offset**2)
    assert measure_tokens("centroid_separation", LAYOUT, x)["", "cls-patch"] == pytest.approx(expected, rel=relative)


@FEW
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2))
def test_centroid_separation_has_no_unit(seed, scale):
    x = cloud(0, seed)
    (one,), (two,) = (measure_tokens("centroid_separation", LAYOUT, y).values() for y in (x, scale * x - 3))
    assert one == pytest.approx(two, rel=1e-6)


# -- rank


def test_effective_rank_by_construction():
    rows = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert effective_rank(rows[:5].unsqueeze(0)).item() == pytest.approx(5)
    assert effective_rank(7 * rows[:5].unsqueeze(0)).item() == pytest.approx(5)
    assert effective_rank(rows[:1].expand(1, 9, 16)).item() == pytest.approx(1)
    x = torch.randn(3, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert (effective_rank(x) < 16).all()
    torch.testing.assert_close(effective_rank(x @ rows), effective_rank(x))
    assert measure_tokens("effective_rank", TokenLayout(grid=(4, 5), prefix=()), x) == {
        ("", "patch"): pytest.approx(effective_rank(x).mean().item())
    }


# -- weights


def test_weight_distance_by_construction():
    w = torch.tensor([3.0, 4.0])
    assert weight_distance(w, w) == (0, pytest.approx(1))
    assert weight_distance(w, -w) == (pytest.approx(2), pytest.approx(-1))
    assert weight_distance(w, torch.tensor([-4.0, 3.0])) == (pytest.approx(np.sqrt(2)), pytest.approx(0))


def test_weight_distance_of_a_module_specialized_by_hand():
    twin = nn.Module()
    twin.cls, twin.patch = nn.LayerNorm(4), nn.LayerNorm(4)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module(), nn.Module()])
    model.blocks[1].norm1 = twin
    with torch.no_grad():
        twin.patch.weight[:] = torch.tensor([1.0, 1.0, 1.0, -1.0])
    metric = WeightDistance()
    assert metric.prepare(Subject(model, LAYOUT, blocks=2, sites=frozenset())) is None
    rows = {(row["part"], row["site"]): row for row in metric.rows()}
    distance = rows["relative_distance", "LayerNorm/norm1.weight"]
    assert distance["value"] == pytest.approx(1)  # ‖(0, 0, 0, 2)‖ over ‖(1, 1, 1, 1)‖
    assert (distance["block"], distance["n"], distance["group"]) == (1, 4, "cls-patch")
    assert rows["cosine", "LayerNorm/norm1.weight"]["value"] == pytest.approx(0.5)
    assert rows["relative_distance", "LayerNorm/norm1.bias"]["value"] == 0
    assert np.isnan(rows["cosine", "LayerNorm/norm1.bias"]["value"])  # two zero vectors
    ordinary = Subject(nn.Linear(2, 2), LAYOUT, blocks=0, sites=frozenset())
    assert WeightDistance().prepare(ordinary) == "no module of the model is specialized"
