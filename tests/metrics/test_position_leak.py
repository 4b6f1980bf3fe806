"""A planted positional signal is found, and none where there is none."""

import pytest
import torch

from tests.metrics._single_metric import feed, numbers
from tokenlens.metrics.position_leak import MOST_IMAGES
from tokenlens.tokens import Site, TokenLayout

LAYOUT = TokenLayout(grid=(6, 8), prefix=("cls",))


def _tokens(count=16, layout=LAYOUT, channels=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, layout.tokens, channels, dtype=torch.float64, generator=generator)


def _leak(x, layout=LAYOUT):
    show = lambda reducer: reducer.tokens(0, Site.RESID_POST, x)  # noqa: E731
    return numbers(feed("position_leak", layout, len(x), show))["", "patch"]


def _plant(x, layout, size, row=True, column=True):
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side).double() for side in layout.grid), indexing="ij")
    x[:, layout.patch_slice, 3] += size * rows.flatten() * row
    x[:, layout.patch_slice, 7] += size * columns.flatten() * column
    return x


def test_noise_leaks_nothing():
    assert -0.15 < _leak(_tokens(64)) < 0.02


def test_a_planted_signal_is_found_and_half_of_one_is_half():
    assert _leak(_plant(_tokens(), LAYOUT, 100)) > 0.99
    assert _leak(_plant(_tokens(), LAYOUT, 100, column=False)) == pytest.approx(0.5, abs=0.05)
    assert 0.1 < _leak(_plant(_tokens(), LAYOUT, 1)) < 0.6


def test_images_beyond_the_first_64_do_not_count():
    x = _tokens(MOST_IMAGES + 4)
    expected = _leak(x[:MOST_IMAGES])
    x[MOST_IMAGES:] = _plant(x[MOST_IMAGES:], LAYOUT, 100)
    assert _leak(x) == pytest.approx(expected)


def test_a_grid_of_one_row_has_one_coordinate_and_one_image_has_no_value():
    layout = TokenLayout(grid=(1, 12), prefix=("cls",))
    assert _leak(_plant(_tokens(16, layout, 8), layout, 100), layout) > 0.99
    assert _leak(_tokens(1)) != _leak(_tokens(1))
