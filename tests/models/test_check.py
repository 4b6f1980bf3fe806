"""``check`` on models, checkpoints, and files that are neither."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.test_creation import in_cache, save_timm_folder
from tests.support.timm_weights import NAME, TEST_DATA, pretrained, timm_state
from tests.support.tiny_models import KINDS, MODELS
from tokenlens.models import check, load_model

TINY = "vit_tiny_patch16_224"


def test_a_named_model_without_any_weights_here():
    found = check(NAME)
    assert found.readable
    assert (found.model.class_name, found.model.library, found.model.family) == (
        "VisionTransformer",
        "timm",
        "timm_vit",
    )
    assert (found.model.image_size, found.model.grid) == ((160, 160), (10, 10))
    assert found.model.tokens == {"cls": 1, "patch": 100}
    parameters = sum(parameter.numel() for parameter in timm.create_model(NAME).parameters())
    assert (found.model.blocks, found.model.parameters) == (6, parameters)
    assert found.weights.source == "hf-hub:timm/test_vit.r160_in1k (not downloaded yet)"
    assert check(NAME, img_size=64).model.grid == (4, 4)
    assert check("specialized:norms:test_vit").model.parameters > found.model.parameters


def test_cached_weights_are_compared(empty_cache, tmp_path):
    save_file(timm_state(), tmp_path / "weights")
    in_cache(empty_cache, "timm/test_vit.r160_in1k", {"model.safetensors": (tmp_path / "weights").read_bytes()})
    found = check(NAME, img_size=64)
    assert found.weights.source.endswith("(in the cache)")
    assert found.weights.matched == found.weights.wanted == len(timm_state())
    assert found.weights.resized == ("pos_embed resampled from 1×101×64 to 1×17×64",)
    assert found.model.parameters == sum(value.numel() for value in load_model(NAME, img_size=64).module.parameters())


def test_a_checkpoint_of_a_model(tmp_path):
    state = timm_state(num_classes=0)
    torch.save(
        {"teacher": {f"net.{key}": value.half() for key, value in state.items()}, "student": {}}, tmp_path / "a.pt"
    )
    found = check(NAME, checkpoint=tmp_path / "a.pt")
    assert found.readable
    assert found.weights.prefix == "teacher.net"
    assert found.weights.steps == ("under 'teacher'", "without the prefix 'net.'", "float16 to float32")
    assert (found.weights.format, found.weights.tensors) == ("PyTorch file", len(state))
    assert found.weights.numbers == sum(value.numel() for value in state.values())
    assert list(found.weights.steps) == load_model(NAME, checkpoint=tmp_path / "a.pt").weights["steps"]
    del state["norm.bias"]
    save_file(state | {"extra": torch.zeros(2)}, tmp_path / "b.safetensors")
    found = check(NAME, checkpoint=tmp_path / "b.safetensors")
    assert not found.readable
    assert (found.weights.missing, found.weights.unexpected) == (("norm.bias",), ("extra",))
    with pytest.raises(ValueError, match="does not fit") as error:
        load_model(NAME, checkpoint=tmp_path / "b.safetensors")
    assert found.problem.removeprefix("the checkpoint does not fit: ") in str(error.value)


def test_a_checkpoint_on_its_own_names_the_architectures_that_it_fits(tmp_path):
    state = timm.create_model(TINY, num_classes=7).state_dict()
    torch.save({"model": state}, tmp_path / "mine.pth")
    found = check(tmp_path / "mine.pth")
    assert found.readable
    assert TINY in found.fits
    assert "vit_tiny_patch16_384" not in found.fits[:1]
    assert found.model.tokens == {"cls": 1, "patch": 196}
    assert found.weights.matched == len(state), "its classifier included"
    torch.save({"model": {"a.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    found = check(tmp_path / "other.pth")
    assert (found.readable, found.model, found.fits) == (False, None, ())
    assert "no architecture of timm was found" in found.problem
    assert "model.a.weight" in found.problem


@pytest.mark.parametrize("name", {kind.family: name for name, kind in KINDS.items()}.values())
def test_modules_of_every_family(name):
    kind, module = KINDS[name], MODELS[name]()
    found = check(module, img_size=kind.image_size)
    assert found.model.family == kind.family
    assert found.model.grid == kind.grid
    assert sum(found.model.tokens.values()) == len(kind.prefix) + kind.grid[0] * kind.grid[1]
    assert found.model.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_what_cannot_be_read_is_said_and_not_raised(tmp_path):
    assert "Linear cannot be analyzed: it has no attention" in check(nn.Linear(2, 2)).problem
    assert "ResNet" in check("resnet10t").problem
    (tmp_path / "page.pth").write_text("<html>")
    assert "a web page" in check(tmp_path / "page.pth").problem
    (tmp_path / "empty").mkdir()
    assert "it is empty" in check(tmp_path / "empty").problem
    assert "does not exist" in check(NAME, checkpoint=tmp_path / "none.pt").problem
    for wrong in ("test_vitt", tmp_path / "none.pth"):
        with pytest.raises(LookupError):
            check(wrong)


def test_it_runs_nothing_and_needs_no_memory_for_weights(tmp_path, monkeypatch):
    def run(*_args, **_options):
        raise AssertionError("the model was run")

    monkeypatch.setattr(nn.Module, "__call__", run)
    save_timm_folder(tmp_path / "folder", num_classes=0)
    assert check(str(tmp_path / "folder")).readable
    assert check("vit_giant_patch14_dinov2").model.parameters == pytest.approx(1136.5e6, rel=1e-4)  # as published
    assert check("tokenlens_tiny").readable


def test_text_and_dict_have_the_same_facts(tmp_path):
    save_file(timm_state(), tmp_path / "a.safetensors")
    found = check(NAME, checkpoint=tmp_path / "a.safetensors", img_size=64)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["readable"] is True
    assert content["model"]["tokens"] == {"cls": 1, "patch": 16}
    assert content["weights"]["resized"] == ["pos_embed resampled from 1×101×64 to 1×17×64"]
    text = str(found)
    for fact in (
        "tokenlens can read it",
        "64×64 pixels, 4×4 patches",
        "1 cls, 16 patch",
        "0 missing",
        "1 resized",
        "pos_",
    ):
        assert fact in text


@pytest.mark.parametrize("data", [pytest.param(TEST_DATA, marks=pretrained)])
def test_real_weights_name_their_architecture(data):
    found = check(f"{data}/weights/dinov2_vits14.safetensors")
    assert found.fits == ("vit_small_patch14_dinov2",)
    assert (found.weights.matched, found.model.tokens["patch"]) == (174, 1369)
