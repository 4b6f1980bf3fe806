"""Models that no family can analyze are refused in words that say why."""

import pkgutil

import pytest
import timm
import torch
from timm.models._registry import _module_to_models
from torch import nn

from tokenlens.families import find_family
from tokenlens.families._unsupported import _REASONS, explain_unsupported, same_in_timm

SUPPORTED = {"beit", "cait", "deit", "eva", "naflexvit", "vision_transformer", "vision_transformer_hybrid"}
SUPPORTED |= {"vision_transformer_relpos", "timm_registration"}  # the last one is tokenlens's own
KNOWN = {name for names in _REASONS.values() for name in names.split()}


def test_every_file_of_models_of_timm_is_supported_or_explained():
    assert set(_module_to_models) - KNOWN - SUPPORTED == set()
    assert not KNOWN & SUPPORTED


def test_every_file_of_models_of_torchvision_is_supported_or_explained():
    import torchvision

    files = {module.name for module in pkgutil.iter_modules(torchvision.models.__path__)}
    other = {"vision_transformer", "feature_extraction"}
    assert {name for name in files if not name.startswith("_")} - KNOWN - other == set()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet10t", "it is a convolutional network, which has no patch tokens"),
        ("convnext_atto", "convolutional"),
        ("mixer_s32_224", "without attention, so no token attends to another"),
        ("poolformer_s12", "without attention"),
        ("swin_tiny_patch4_window7_224", "merges its tokens from stage to stage"),
        ("hiera_tiny_224", "merges its tokens"),
        ("pvt_v2_b0", "merges its tokens"),
        ("maxvit_pico_rw_256", "merges its tokens"),
        ("xcit_nano_12_p16_224", "attention is between channels"),
    ],
)
def test_models_of_timm(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(LookupError, match=f"cannot be analyzed: .*{reason}") as caught:
        find_family(model)
    assert "Write a Family" not in str(caught.value)


def test_models_of_transformers():
    import transformers

    small = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "image_size": 32}
    with torch.device("meta"):
        models = {
            "convolutional": transformers.ResNetModel(transformers.ResNetConfig()),
            "from stage to stage": transformers.SwinModel(transformers.SwinConfig(**small)),
            "within windows": transformers.SamModel(transformers.SamConfig()),
        }
    for reason, model in models.items():
        with pytest.raises(LookupError, match=reason):
            find_family(model)


def test_the_same_model_of_timm_is_named():
    foreign = type("ViT", (nn.Linear,), {"__module__": "vit_pytorch.vit"})(2, 2)
    assert same_in_timm(foreign) == "vit_base_patch16_224"
    with pytest.raises(LookupError, match="same architecture of timm: vit_base_patch16_224"):
        find_family(foreign)


def test_a_model_with_attention_of_its_own_is_not_explained_away():
    assert explain_unsupported(nn.TransformerEncoderLayer(8, 2, batch_first=True)) is None
    assert "no attention" in str(explain_unsupported(nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())))
