"""Attention metrics, token norms and updates of constructed tokens."""

# Shapes: B images, H heads, T tokens, P patches, D channels, d channels of one head.

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import feed_attention, measure_attention, measure_tokens, measure_update, queries
from tokenlens.metrics.attention_entropy import attention_entropy
from tokenlens.metrics.attention_mass import attention_mass
from tokenlens.metrics.cls_attention_map import attention_peak
from tokenlens.metrics.token_norm import HIGH_NORM_RATIO, high_norm_share, median
from tokenlens.metrics.update_ratio import update_ratio
from tokenlens.tokens import TokenLayout

FEW = settings(max_examples=25, deadline=None)


def test_uniform_attention():
    q, k = queries()
    entropy = measure_attention("attention_entropy", LAYOUT, 0 * q, k)
    assert entropy["normalized", "cls-patch"] == pytest.approx(1)
    assert entropy["effective_patches", "cls-patch"] == pytest.approx(LAYOUT.patches)
    assert measure_attention("cls_attention_map", LAYOUT, 0 * q, k)["peak", "cls-patch"] == pytest.approx(1)
    mass = measure_attention("attention_mass", LAYOUT, 0 * q, k)
    for query in ("cls", "patch"):
        for group, count in {"cls": 1, "dist": 1, "reg": 2}.items():
            assert mass["", f"{query}-{group}"] == pytest.approx(count / LAYOUT.tokens)


def test_attention_to_one_patch():
    q, k = queries()
    k = torch.zeros_like(k)
    k[..., 9, :] = 1
    q = torch.full_like(q, 10)
    entropy = measure_attention("attention_entropy", LAYOUT, q, k)
    assert entropy["normalized", "cls-patch"] == pytest.approx(0, abs=1e-12)
    assert entropy["effective_patches", "cls-patch"] == pytest.approx(1)
    assert measure_attention("cls_attention_map", LAYOUT, q, k)["peak", "cls-patch"] == pytest.approx(LAYOUT.patches)
    maps = feed_attention("cls_attention_map", LAYOUT, [(q, k)]).arrays()
    expected = np.zeros((1, 1, 3, 4))
    expected[0, 0, 1, 1] = 1  # position 9 is patch 5: row 1, column 1
    np.testing.assert_allclose(maps["mean"].values, expected, atol=1e-12)


def test_one_image_has_a_map_but_no_spread():
    maps = feed_attention("cls_attention_map", LAYOUT, [queries(images=1)]).arrays()
    assert np.isfinite(maps["mean"].values).all()
    assert np.isnan(maps["sd"].values).all()


@FEW
@given(seed=st.integers(0, 2**31))
def test_the_cls_row_is_divided_among_the_groups(seed):
    q, k = queries(seed)
    mass = measure_attention("attention_mass", LAYOUT, q, k)
    assert set(mass) == {
        ("", f"{query}-{key}") for query in ("cls", "patch") for key in ("cls", "dist", "reg", "patch")
    } - {("", "patch-patch")}
    assert sum(mass["", f"cls-{group}"] for group in LAYOUT.groups) == pytest.approx(1, abs=1e-12)
    assert 0 < sum(mass["", f"patch-{group}"] for group in ("cls", "dist", "reg")) < 1
    pattern = (q @ k.transpose(-1, -2)).softmax(-1)
    for group, value in mass.items():
        query, key = group[1].split("-")
        assert attention_mass(pattern, LAYOUT, query, key).mean().item() == pytest.approx(value, abs=1e-12)


@FEW
@given(seed=st.integers(0, 2**31), patches=st.integers(2, 30))
def test_entropy_and_peak_are_bounded_and_do_not_depend_on_the_total(seed, patches):
    row = torch.rand(2, 3, patches, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-9
    entropy, peak = attention_entropy(row), attention_peak(row)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(patches) + 1e-12).all()
    assert (peak >= 1 - 1e-12).all()
    assert (peak <= patches + 1e-12).all()
    torch.testing.assert_close(attention_entropy(row / 1000), entropy)
    torch.testing.assert_close(attention_peak(row / 1000), peak)


# -- norms


@pytest.mark.parametrize("patches", [1, 2, 5, 6, 195, 196])
def test_the_median_is_numpys(patches):
    x = torch.randn(4, patches, dtype=torch.float64, generator=torch.Generator().manual_seed(patches))
    np.testing.assert_allclose(median(x).numpy(), np.median(x.numpy(), axis=-1))


@pytest.mark.parametrize(("grid", "share"), [((2, 5), 0.2), ((1, 5), 0.2), ((3, 5), 2 / 15)])
def test_high_norm_patches_are_counted(grid, share):
    layout = TokenLayout(grid=grid)
    lengths = torch.linspace(1, 1.4, layout.patches)
    outliers = round(share * layout.patches)
    lengths[:outliers] = 40.0
    x = torch.zeros(2, layout.tokens, 3)
    x[:, 1:, 1] = -lengths
    x[:, 0, 0] = 7
    found = measure_tokens("token_norm", layout, x)
    assert found["mean", "cls"] == pytest.approx(7)
    assert found["mean", "patch"] == pytest.approx(lengths.mean().item())
    assert found["high_norm_share", "patch"] == pytest.approx(share)
    assert found["max_over_median", "patch"] == pytest.approx(40 / np.median(lengths.numpy()))


@pytest.mark.parametrize(("longest", "share"), [(1, 0), (HIGH_NORM_RATIO, 0), (1.001 * HIGH_NORM_RATIO, 1 / 7)])
def test_equal_patches_and_the_threshold_itself_do_not_count_as_high_norm(longest, share):
    assert high_norm_share(torch.tensor([[longest, 1.0, 1, 1, 1, 1, 1]])).item() == pytest.approx(share)


# -- updates


@FEW
@given(seed=st.integers(0, 2**31), factor=st.floats(0.01, 100), sign=st.sampled_from([-1, 1]))
def test_an_update_along_the_residual(seed, factor, sign):
    x = torch.randn(2, LAYOUT.tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = measure_update("update_ratio", LAYOUT, x, sign * factor * x)
    for group in LAYOUT.groups:
        assert found["ratio", group] == pytest.approx(factor, rel=1e-9)
        assert found["cosine", group] == pytest.approx(sign, rel=1e-6)


def test_an_update_across_the_residual_and_none():
    x = torch.zeros(2, LAYOUT.tokens, 4)
    y = torch.zeros_like(x)
    x[..., 0], y[..., 1] = 2, 3
    found = measure_update("update_ratio", LAYOUT, x, y)
    assert found["ratio", "cls"] == pytest.approx(1.5)
    assert found["cosine", "cls"] == pytest.approx(0)
    nothing = measure_update("update_ratio", LAYOUT, x, 0 * y)
    assert nothing["ratio", "patch"] == 0
    assert np.isnan(nothing["cosine", "patch"])
    torch.testing.assert_close(update_ratio(y, x), torch.full((2, LAYOUT.tokens), 1.5))
