"""A planted massive channel is found, at its place and in its group; noise has none."""

import pytest

from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import feed_tokens, noise, numbers


def test_noise_has_no_massive_channel():
    found = numbers(feed_tokens("massive_channels", LAYOUT, noise(8)))
    for group in LAYOUT.groups:
        assert 1 <= found["max_over_median", group] < 4
        assert 3 / 96 <= found["top3_energy", group] < 0.25


@pytest.mark.parametrize("group", LAYOUT.groups)
def test_a_planted_channel_is_found_in_its_group_only(group):
    x = noise(8)
    x[:, list(LAYOUT.positions(group)), 17] += 100
    x[:, list(LAYOUT.positions(group)), 5] -= 50
    metric = feed_tokens("massive_channels", LAYOUT, x)
    found, arrays = numbers(metric), metric.arrays()
    assert found["max_over_median", group] > 100
    assert found["top3_energy", group] == pytest.approx(12500 / 12594, abs=0.01)
    assert arrays[f"channels_{group}_resid_post"].values[0, :2].tolist() == [17, 5]
    for other in set(LAYOUT.groups) - {group}:
        assert found["max_over_median", other] < 4
