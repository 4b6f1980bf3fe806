"""Features of frozen models equal the recorded activations, for every kind of model."""

from __future__ import annotations

import pytest
import torch

import tokenlens
from tests.support.tiny_models import KINDS, MODELS, images
from tokenlens.models.loading import load_model
from tokenlens.probes._features import FrozenModel, RawPixels


def frozen(name: str, kind: str, blocks=None) -> FrozenModel:
    loaded = load_model(MODELS[name](), pretrained=False, img_size=KINDS[name].image_size)
    return FrozenModel(loaded, kind, blocks, amp=False)


@pytest.mark.parametrize("name", KINDS)
def test_features_are_what_is_recorded(name):
    x = images(name)
    model = frozen(name, "image")
    recording = tokenlens.record(MODELS[name](), x, img_size=KINDS[name].image_size, sites=["resid_post", "final_norm"])
    last = recording.blocks[-1]
    tokens_BTD = recording[(None, "final_norm") if KINDS[name].final_norm else (last, "resid_post")].float()
    layout = recording.layout
    found = model.features(x)
    patches_BPD = layout.patches_of(tokens_BTD)
    expected = {"patch_mean": patches_BPD.mean(1)}
    if layout.has("cls"):
        expected["cls"] = tokens_BTD[:, layout.positions("cls")[0]]
    assert set(found) == set(expected) == set(model.sources)
    for part, values_BF in expected.items():
        torch.testing.assert_close(found[part], values_BF)
    if layout.border_note(KINDS[name].image_size):
        with pytest.raises(ValueError, match=r"pixels: .* a segmentation probe needs an image size"):
            frozen(name, "patches")
        assert "at the bottom" in model.protocol["images"]
    else:
        torch.testing.assert_close(frozen(name, "patches").features(x)["patches"], patches_BPD)
    assert ("unchanged" in model.protocol["frozen features"]) is not KINDS[name].final_norm


@pytest.mark.parametrize("name", ["timm_vit", "timm_deit_distilled", "timm_dinov2_registers", "timm_dinov3"])
def test_chosen_blocks_are_those_of_timm(name):
    model, x = MODELS[name](), images(name)
    with torch.no_grad():
        layers = model.forward_intermediates(
            x, indices=[0, 1], norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    found = frozen(name, "patches", [0, -1]).features(x)["patches"]
    torch.testing.assert_close(found, torch.cat([patches for patches, _ in layers], -1))
    found = frozen(name, "image", [0, 1]).features(x)["cls"]
    torch.testing.assert_close(found, torch.cat([prefix[:, 0] for _, prefix in layers], -1))
    with pytest.raises(LookupError, match=r"expected different blocks of 0 to 1, at least one, got \[1, -1\]"):
        frozen(name, "image", [1, -1])


def test_raw_pixels():
    x_B3HW = torch.randn(2, 3, 64, 64)
    patches_BPF = RawPixels("patches", 64).features(x_B3HW)["patches"]
    assert patches_BPF.shape == (2, 256, 48)
    expected = x_B3HW[0, :, 4:8, 8:12]  # row 1, column 2
    torch.testing.assert_close(patches_BPF[0, 16 + 2].view(3, 4, 4), expected)
    small_BF = RawPixels("image", 64).features(x_B3HW)["pixels"]
    torch.testing.assert_close(small_BF.view(2, 3, 16, 16)[1, 2, 1, 2], x_B3HW[1, 2, 4:8, 8:12].mean())
    with pytest.raises(ValueError, match="multiple of 16, got 60"):
        RawPixels("image", 60)
