"""Laws of patch_diversity: its range, and what changes it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import measure_tokens


def _tokens(seed=0):
    return torch.randn(3, LAYOUT.tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _diversity(x):
    return measure_tokens("patch_diversity", LAYOUT, x)["", "patch"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_scale_order_and_special_tokens_do_not_matter(seed, scale):
    x = _tokens(seed)
    expected = _diversity(x)
    assert 0 < expected <= 1
    changed = x * scale
    changed[:, LAYOUT.patch_slice] = changed[:, LAYOUT.patch_slice].flip(1)
    changed[:, 0] += 100
    assert _diversity(changed) == pytest.approx(expected)


def test_equal_patches_have_none_and_patches_of_mean_0_have_all():
    x = _tokens()
    x[:, LAYOUT.patch_slice] = x[:, -1:]
    assert _diversity(x) == pytest.approx(0, abs=1e-7)
    x[:, LAYOUT.patch_slice] = _centred()
    assert _diversity(x) == pytest.approx(1)


def _centred():
    patches = _tokens(1)[:, LAYOUT.patch_slice]
    return patches - patches.mean(1, keepdim=True)


def test_a_common_vector_lowers_it_by_pythagoras():
    x = _tokens()
    x[:, LAYOUT.patch_slice] = _centred()
    size = x[:, LAYOUT.patch_slice].norm(dim=(1, 2))
    x[:, LAYOUT.patch_slice] += (3 * size / math.sqrt(LAYOUT.patches * 6))[:, None, None]
    assert _diversity(x) == pytest.approx(1 / math.sqrt(10))
