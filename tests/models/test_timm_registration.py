"""timm's names of specialized models and of those that come with tokenlens."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.models.test_shipped import NAMES, noise, tokens
from tokenlens.models import load_model, shipped
from tokenlens.models.timm_registration import SIZES
from tokenlens.specialization import PRESETS, get_plan


@pytest.mark.parametrize("name", SIZES)
def test_specialized_names(name):
    with torch.device("meta"):
        model = timm.create_model(f"{name}_specialized", num_classes=0, depth=3)
    assert get_plan(model).specialization == PRESETS["paper"]
    assert timm.is_model(name)


def test_specialized_names_accept_another_specialization_and_a_checkpoint(tmp_path):
    name, file = "vit_tiny_patch16_224_specialized", tmp_path / "standard.safetensors"
    assert get_plan(timm.create_model(name, specialization="norms", depth=2)).specialization == PRESETS["norms"]
    save_file(timm.create_model("vit_tiny_patch16_224", depth=2).state_dict(), file)
    timm.create_model(name, depth=2, checkpoint_path=str(file))
    with pytest.raises(ValueError, match="specialized_vit needs architecture"):
        timm.create_model("specialized_vit")


@pytest.mark.parametrize("size", [112, 140])
@pytest.mark.parametrize("name", NAMES)
def test_shipped_models_are_the_same_in_timm(name, size):
    loaded = load_model(name, device="cpu", img_size=size)
    created = timm.create_model(name, pretrained=True, img_size=size)
    assert torch.equal(tokens(created, size), tokens(loaded.module, size))
    assert ("pos_embed resampled" in loaded.weights["source"]) == (size != 112)
    assert get_plan(created) == get_plan(loaded.module)
    assert "state_dict" not in created.pretrained_cfg
    if size == 112:
        from_folder = timm.create_model(f"local-dir:{shipped.find_folder(name)}", True)
        assert torch.equal(tokens(created), tokens(from_folder))
        assert not torch.equal(timm.create_model(name).pos_embed, created.pos_embed), "timm's default is random"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_models_are_listed_as_pretrained(name):
    assert name in timm.list_models(pretrained=True)
    assert timm.create_model(name, pretrained=True, num_classes=5)(noise()).shape == (2, 5)
    arguments = timm.models.resolve_model_input_args(name)  # as timm's scripts create a model
    created = timm.create_model(pretrained=True, **arguments)
    assert torch.equal(tokens(created), tokens(load_model(name, device="cpu").module))
    assert list(timm.data.resolve_model_data_config(created)["input_size"]) == [3, 112, 112]
    with pytest.raises(RuntimeError, match="goes without a tag"):
        timm.create_model(f"{name}.v2")
