"""Summaries of several sites and passes are stacked without losing which is which."""

import pytest
import torch

from tokenlens.reduction.summaries import BatchSummary, TokenSummary
from tokenlens.tokens import TokenLayout

LAYOUT = TokenLayout(grid=(1, 2))
SITES = ("resid_pre", "norm1", "attn_out", "resid_post")


def summary(number: float, images: int, absolute: bool) -> TokenSummary:
    values = torch.arange(images, dtype=torch.float32) + number
    return TokenSummary(
        LAYOUT,
        prefix=values[:, None, None].expand(images, 1, 4),
        norms=values[:, None].expand(images, 3),
        patch_abs_sum=values[:, None].expand(images, 4) if absolute else None,
    )


@pytest.fixture
def batch() -> BatchSummary:
    """Two passes, of two images and one; the last site is the same tensor as the first, and has Σ|x|."""
    passes = [[summary(10 * site + 2 * index, 2 - index, site == 0) for index in range(2)] for site in range(3)]
    keys = [(0, site) for site in SITES]
    return BatchSummary(LAYOUT, [0, 1, 2], {TokenSummary: dict(zip(keys, [*passes, passes[0]], strict=True))})


@pytest.mark.parametrize("sites", [SITES, SITES[1:3], SITES[::2]])
def test_images_and_sites_keep_their_places(batch, sites):
    (stack,) = batch.stacks(TokenSummary, sites)
    assert stack.keys == [(0, site) for site in sites]
    expected = torch.tensor([[10.0 * (SITES.index(site) % 3) + i for i in range(3)] for site in sites])
    assert torch.equal(stack.summary.norms[..., 0], expected.double())
    assert torch.equal(stack.summary.prefix[..., 0, 0], expected)


def test_a_field_that_some_sites_lack_is_left_out(batch):
    assert batch.stacks(TokenSummary, SITES)[0].summary.patch_abs_sum is None
    (stack,) = batch.stacks(TokenSummary, (SITES[0], SITES[3]))
    assert stack.summary.patch_abs_sum[..., 0].tolist() == [[0, 1, 2], [0, 1, 2]]
