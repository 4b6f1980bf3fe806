"""The foreground is found by the first component, and its colours are components of its own."""

# Shapes: N images, P patches, D channels; h, w the patch grid.

import numpy as np
import torch

import tokenlens
from tests.support.tiny_models import build, images
from tokenlens.overlays.components import component_maps, find_foreground
from tokenlens.overlays.maps import as_rgb, principal_components


def object_in_the_middle(sign: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Return patches (1, 64, 6) of a square object on an even background, and which of them are the object."""
    inside_hw = np.zeros((8, 8), dtype=bool)
    inside_hw[2:6, 1:5] = True
    x_PD = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) * 0.3
    x_PD[torch.from_numpy(inside_hw.ravel())] += sign * torch.tensor([4.0, -2, 0, 1, 0, 0])
    return x_PD[None], inside_hw


def test_the_object_is_the_foreground_whatever_the_sign_of_the_component():
    for sign in (1.0, -1.0):
        x_NPD, inside_hw = object_in_the_middle(sign)
        found = find_foreground(x_NPD, (8, 8))
        np.testing.assert_array_equal(found.inside_NP[0].reshape(8, 8), inside_hw)
        assert found.share_N[0] == 16 / 64
        assert 0.5 < found.explained < 1


def test_colours_are_components_of_the_foreground():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"))
    found = component_maps(recording, blocks=[1], site="norm2")
    patches_PD = recording.layout.patches_of(recording[1, "norm2"])[0]
    inside_P = find_foreground(patches_PD[None], (4, 4)).inside_NP[0]
    rgba_P4 = found.maps[0].reshape(16, 4)
    np.testing.assert_array_equal(rgba_P4[:, 3] == 1, inside_P)
    expected = as_rgb(principal_components(patches_PD[torch.from_numpy(inside_P)][None]).scores_NPC)[0]
    np.testing.assert_allclose(rgba_P4[inside_P, :3], expected, atol=1e-6)
    assert found.colours
    assert found.captions == (f"{100 * inside_P.mean():.0f} %",)


def test_components_over_all_images_differ_from_those_of_one():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"))
    alone, together = (component_maps(recording, image=1, together=choice) for choice in (False, True))
    assert "over this image" in alone.note
    assert "over 2 images" in together.note
    assert not np.allclose(alone.maps, together.maps)


def test_signs_follow_the_block_before():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"))
    recording.tensors[1, "resid_post"] = -recording[0, "resid_post"]  # the same components, all signs reversed
    found = component_maps(recording, site="resid_post")
    np.testing.assert_allclose(found.maps[0], found.maps[1], atol=1e-5)
