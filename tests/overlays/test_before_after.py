"""Cosines before and after a norm agree with NumPy, and a norm whose input was not recorded is refused."""

# Shapes: T tokens, D channels, P patches.

from functools import cache

import numpy as np
import pytest

import tokenlens
from tests.support.tiny_models import KINDS, build, images
from tokenlens.overlays.before_after import before_after_grid, before_after_maps, before_and_after
from tokenlens.recording.recording import Recording


@cache
def recorded(kind: str) -> Recording:
    return tokenlens.record(build(kind), images(kind), img_size=KINDS[kind].image_size)


def cosines(x_TD: np.ndarray, at: int, patches: slice) -> np.ndarray:
    unit_TD = x_TD / np.linalg.norm(x_TD, axis=-1, keepdims=True)
    return unit_TD[patches] @ unit_TD[at]


@pytest.mark.parametrize("norm", ["norm1", "norm2", "final_norm"])
def test_the_maps_are_those_of_the_sites(norm):
    recording = recorded("timm_dinov2_registers")
    layout = recording.layout
    found = before_after_maps(recording, image=1, norm=norm)
    source = {"norm1": "resid_pre", "norm2": "resid_mid", "final_norm": "resid_post"}[norm]
    blocks = [1] if norm == "final_norm" else [0, 1]
    keys = [(block, source) for block in blocks]
    keys += [(None, norm)] if norm == "final_norm" else [(block, norm) for block in blocks]
    for map_hw, key, caption in zip(found.maps, keys, found.captions, strict=True):
        expected_P = cosines(recording[key][1].double().numpy(), 0, layout.patch_slice)
        np.testing.assert_allclose(map_hw.ravel(), expected_P, atol=1e-5)
        assert caption == f"{expected_P.mean():+.2f}".replace("-", "−")
    assert found.rows == (f"before {norm}", f"after {norm}")
    assert found.frame()["mean"].to_numpy() == pytest.approx(found.maps.mean((1, 2)), abs=1e-6)


@pytest.mark.parametrize("kind", ["timm_vit", "timm_rms", "timm_dinov2", "torchvision_vit", "dinov3_hub_untied"])
def test_the_norms_of_pre_norm_models_are_recognized(kind):
    for norm in ("norm1", "norm2", "final_norm"):
        before_and_after(recorded(kind), 0, 1, norm)


@pytest.mark.parametrize("kind", ["timm_post_norm", "timm_eva_post_norm"])
def test_a_norm_after_attention_is_refused(kind):
    recording = recorded(kind)
    for norm, source in (("norm1", "resid_pre"), ("norm2", "resid_mid")):
        with pytest.raises(LookupError, match=rf"{norm} of block 0 does not normalize {source} \(as in post-norm"):
            before_after_maps(recording, norm=norm)


def test_other_sites_and_blocks_are_refused():
    recording = recorded("timm_vit")
    with pytest.raises(LookupError, match="a norm is norm1, norm2, final_norm, got 'q'"):
        before_after_maps(recording, norm="q")
    with pytest.raises(LookupError, match="there is no block 7"):
        before_after_maps(recording, blocks="0,7")
    with pytest.raises(ValueError, match="expected numbers like 0-5,11, got 'x'"):
        before_after_maps(recording, blocks="x")


def test_arrays_give_the_same_maps():
    recording = recorded("timm_vit")
    found = before_after_maps(recording)
    made = before_after_grid(
        found.photograph, found.maps[:2], found.maps[2:], ["block 0", "block 1"], image=found.image, model=found.model
    )
    assert made.frame().equals(found.frame())
    assert (made.rows, made.columns, made.quantity) == (found.rows, found.columns, "cosine to [CLS]")
