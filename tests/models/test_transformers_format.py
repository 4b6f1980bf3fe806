"""Folders in the format of Hugging Face Transformers, by path and from the hub."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.models.test_creation import in_cache
from tests.support.tiny_models import MODELS, images
from tokenlens.families import image_size_of
from tokenlens.models import check, create_meta_model, load_model
from tokenlens.models.transformers_format import read_preprocessing
from tokenlens.specialization import get_plan

KINDS = ["hf_vit", "hf_vit_classifier", "hf_deit", "hf_dinov2_registers", "hf_dinov3", "hf_clip", "hf_siglip_vision"]
CROPPED = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}


def save(name: str, folder: Path, preprocessing: object = CROPPED, **options: object) -> torch.nn.Module:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = MODELS[name]()
    model.save_pretrained(folder, **options)
    if preprocessing is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_and_the_output_are_those_of_the_saved_model(tmp_path, kind):
    model = save(kind, tmp_path)
    loaded = load_model(f"local-dir:{tmp_path}", device="cpu")
    assert type(loaded.module) is type(model)
    assert (loaded.family.name, loaded.untrained, loaded.module.training) == ("hf_vit", False, False)
    assert {value.dtype for value in loaded.module.parameters()} == {torch.float32}
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    with torch.no_grad():
        ours, theirs = (loaded.family.forward(each, images(kind)) for each in (loaded.module, model))
    first = next(iter(ours.values())) if hasattr(ours, "values") else ours
    assert torch.equal(first, next(iter(theirs.values())) if hasattr(theirs, "values") else theirs)
    assert load_model(f"local-dir:{tmp_path}", pretrained=False, device="cpu").untrained


def test_a_path_the_hub_and_shards(tmp_path, empty_cache):
    model = save("hf_dinov2", tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    in_cache(empty_cache, "me/dino", {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
    for name in (str(tmp_path / "model"), "hf-hub:me/dino", f"local-dir:{tmp_path / 'model'}"):
        loaded = load_model(name, device="cpu")
        assert loaded.name == name
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.module.state_dict().items())
        assert loaded.data_config["mean"] == (0.4, 0.5, 0.6)
        assert check(name).readable


def test_preprocessing_is_the_folders(tmp_path):
    save("hf_dinov2", tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.image_size == (32, 32)
    loaded.module.config.image_size = 96
    assert image_size_of(loaded.module) == (32, 32), "the preprocessing goes before the configuration"
    assert loaded.data_config["crop_pct"] == 0.8
    assert (loaded.data_config["interpolation"], loaded.data_config["std"]) == ("bicubic", (0.2, 0.3, 0.4))
    assert "assumed" not in loaded.data_config
    grey = loaded.transform()(Image.new("RGB", (80, 60), (255, 0, 0)))
    torch.testing.assert_close(grey[:, 0, 0], torch.tensor([0.6 / 0.2, -0.5 / 0.3, -0.6 / 0.4]))
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_model(str(tmp_path), device="cpu").data_config["assumed"] == "ImageNet defaults"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": {"height": 16, "width": 24}, "resample": 2},
         {"input_size": (3, 16, 24), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}),
        ({"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3},
         {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
    ],
)  # fmt: skip
def test_forms_of_preprocessing(tmp_path, given, expected):
    (tmp_path / "file.json").write_text(json.dumps(given))
    assert read_preprocessing(tmp_path / "file.json") == expected
    (tmp_path / "file.json").write_text(json.dumps(given | {"rescale_factor": 0.5}))
    with pytest.raises(ValueError, match=r"scales pixels by 0\.5"):
        read_preprocessing(tmp_path / "file.json")


def test_half_precision_and_steps(tmp_path):
    model = save("hf_vit", tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)
    loaded = load_model(str(tmp_path), device="cpu")
    state = model.state_dict()
    assert all(torch.equal(value, state[key].half().float()) for key, value in loaded.module.state_dict().items())
    steps = "; ".join(loaded.weights["steps"])
    assert "float16 to float32" in steps
    assert "32 keys renamed as transformers does: encoder.layer.0.attention" in steps


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshaped"])
@pytest.mark.parametrize("kind", ["hf_vit", "hf_clip_vision"])
def test_partial_loads_are_refused(tmp_path, kind, change):
    save(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "1" in key and key.endswith("bias"))
    if change == "missing":
        del tensors[key]
    else:
        tensors["blocks.extra" if change == "unexpected" else key] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"does not fit .*1 key (missing|unexpected|of another shape): ") as error:
        load_model(str(tmp_path), device="cpu")
    assert check(str(tmp_path)).problem.removeprefix("the checkpoint does not fit: ") in str(error.value)


def test_a_checkpoint_for_a_folder_in_any_wrapper(tmp_path):
    model = save("hf_clip_vision", tmp_path / "model")
    other = {f"net.encoder.{key}": value + 1 for key, value in model.state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "mine.ckpt")
    loaded = load_model(str(tmp_path / "model"), checkpoint=tmp_path / "mine.ckpt", device="cpu")
    state = model.state_dict()
    assert all(torch.equal(value, state[key] + 1) for key, value in loaded.module.state_dict().items())
    assert loaded.weights["steps"] == ["under 'state_dict'", "without the prefix 'net.encoder.'"]


def test_specialized(tmp_path):
    save("hf_dinov2", tmp_path)
    plain, twin = (load_model(name, device="cpu") for name in (str(tmp_path), f"specialized:norms:{tmp_path}"))
    assert get_plan(twin.module) is not None
    x = images("hf_dinov2")
    with torch.no_grad():
        outputs = [each.module(pixel_values=x).last_hidden_state for each in (plain, twin)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nonsense"}, "is a 'nonsense', which transformers .* does not have"),
        ({"model_type": "nonsense", "auto_map": {}}, "which transformers .* does not have"),
        ({}, 'neither the "architecture" of timm\'s format nor the "model_type"'),
        ([], "is not a JSON object"),
        ({"model_type": "vit", "image_size": "large"}, "transformers cannot create|no configuration of a"),
    ],
)
def test_configurations_that_do_not_work(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path), device="cpu")


def test_without_transformers(tmp_path, monkeypatch):
    save("hf_vit", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"not installed; install tokenlens-vit\[hf\]"):
        load_model(str(tmp_path), device="cpu")


def test_a_model_of_transformers_that_is_no_vit(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    with pytest.raises(LookupError, match="ResNetModel cannot be analyzed: it is a convolutional network"):
        load_model(str(tmp_path), device="cpu")
    assert create_meta_model(str(tmp_path)) is not None
