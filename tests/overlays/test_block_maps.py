"""Maps through the blocks and of all heads agree with the single maps."""

from functools import cache

import numpy as np
import pytest

import tokenlens
from tests.support.tiny_models import build, images
from tokenlens.overlays.block_maps import attention_maps, cosine_maps, norm_maps
from tokenlens.overlays.maps import attention_map, cosine_map
from tokenlens.overlays.selection import attention_of, tokens_at
from tokenlens.recording.recording import Recording


@cache
def recorded() -> Recording:
    return tokenlens.record(build("timm_dinov2_registers"), images("timm_dinov2_registers"))


def test_cosines_block_by_block():
    recording = recorded()
    found = cosine_maps(recording, image=1, site="q", token=(1, 2), head=1)
    for block in (0, 1):
        expected_hw = cosine_map(tokens_at(recording, 1, block, "q", 1), recording.layout, (1, 2))
        np.testing.assert_array_equal(found.maps[block], expected_hw)
    assert found.titles == ("block 0", "block 1")
    assert "q · head 1" in found.note


def test_norms_are_relative_to_the_median_and_high_ones_are_marked():
    recording = recorded()
    tensors = {(1, "resid_post"): recording[1, "resid_post"].clone()}
    layout = recording.layout
    tensors[1, "resid_post"][0, layout.patch_positions[6]] *= 100
    found = norm_maps(Recording(**{**vars(recording), "tensors": tensors}))
    assert np.median(found.maps[0]) == pytest.approx(1, rel=1e-5)
    assert np.argwhere(found.outlined[0]).tolist() == [[1, 2]]
    assert found.captions[0].endswith("\n1 high")


def test_all_heads_and_their_mean():
    recording = recorded()
    found = attention_maps(recording, block=0, token="reg1")
    assert found.titles == ("mean", "head 0", "head 1")
    for map_hw, head in zip(found.maps, (None, 0, 1), strict=True):
        expected_hw = attention_map(attention_of(recording, 0, 0, "reg1", head), recording.layout)
        np.testing.assert_allclose(map_hw, expected_hw, rtol=1e-5)
    assert attention_maps(recording, heads="1").titles == ("head 1",)
    with pytest.raises(LookupError, match="heads 0 to 1, got 2"):
        attention_maps(recording, heads="0-2")


def test_sixteen_heads_and_their_mean_stand_in_even_rows():
    from tokenlens.overlays.block_maps import _columns

    assert [_columns(count) for count in (1, 7, 13, 17, 25)] == [1, 7, 7, 6, 7]
