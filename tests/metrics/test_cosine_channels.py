"""A planted channel that makes the CLS–patch cosine is found, and noise has none."""

import pytest
import torch

from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import feed, numbers
from tokenlens.tokens import Site


def _measure(x):
    return feed("cosine_channels", LAYOUT, len(x), lambda reducer: reducer.tokens(0, Site.RESID_POST, x))


def _noise():
    return torch.randn(6, LAYOUT.tokens, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_noise_is_spread_over_the_channels():
    found = numbers(_measure(_noise()))
    assert found["effective_channels", "cls-patch"] > 96 / 2
    assert found["top1_share", "cls-patch"] < 0.1


def test_a_planted_channel_makes_the_cosine():
    x = _noise()
    x[..., 11] += 100
    metric = _measure(x)
    found = numbers(metric)
    assert found["top1_share", "cls-patch"] > 0.95
    assert 1 <= found["effective_channels", "cls-patch"] < 1.5
    parts = metric.arrays()["resid_post"].values[0]
    assert parts.argmax() == 11
    unit = x / x.norm(dim=-1, keepdim=True)
    cosine = (unit[:, LAYOUT.patch_slice] @ unit[:, :1].mT).mean().item()
    assert parts.sum() == pytest.approx(cosine)
