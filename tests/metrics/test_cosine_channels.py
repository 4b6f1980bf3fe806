"""A planted channel that makes the CLS–patch cosine is found, and noise has none."""

import pytest

from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import feed_tokens, noise, numbers


def test_noise_is_spread_over_the_channels():
    found = numbers(feed_tokens("cosine_channels", LAYOUT, noise(6)))
    assert found["effective_channels", "cls-patch"] > 96 / 2
    assert found["top1_share", "cls-patch"] < 0.1


def test_a_planted_channel_makes_the_cosine():
    x = noise(6)
    x[..., 11] += 100
    metric = feed_tokens("cosine_channels", LAYOUT, x)
    found = numbers(metric)
    assert found["top1_share", "cls-patch"] > 0.95
    assert 1 <= found["effective_channels", "cls-patch"] < 1.5
    parts = metric.arrays()["resid_post"].values[0]
    assert parts.argmax() == 11
    unit = x / x.norm(dim=-1, keepdim=True)
    cosine = (unit[:, LAYOUT.patch_slice] @ unit[:, :1].mT).mean().item()
    assert parts.sum() == pytest.approx(cosine)
