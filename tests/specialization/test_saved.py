"""State dicts, merging, names, and specialized models in timm's own formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tokenlens
from tests.specialization.test_specialize import outputs
from tests.support.command_line import finished, process
from tests.support.tiny_models import MODELS, images
from tests.support.watching import hooks
from tokenlens import Specialization, merge, specialize
from tokenlens.models.loading import load_model
from tokenlens.models.timm_registration import SIZES
from tokenlens.specialization._plan import plan_of
from tokenlens.specialization._save import save
from tokenlens.specialization._specialization import PRESETS
from tokenlens.specialization._state_dict import has_two_sets
from tokenlens.specialization.base import SpecializedModule

SEVERAL = ["timm_vit", "timm_dinov2_registers", "timm_beit", "timm_eva02", "hf_dinov2", "torchvision_vit", "dinov2_hub"]


def preset_for(name: str) -> str:
    return "norms" if name == "torchvision_vit" else "everything"


@torch.no_grad()
def disturb(model: nn.Module) -> nn.Module:
    """Move the two sets apart, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_standard_state_dict_loads_into_both_sets(name, assign):
    standard, x = MODELS[name](), images(name)
    twin = disturb(specialize(MODELS[name](), preset_for(name)))
    found = twin.load_state_dict(standard.state_dict(), assign=assign)
    assert not found.missing_keys
    assert not found.unexpected_keys
    with torch.no_grad():
        assert torch.equal(outputs(twin, x), outputs(standard, x))
    parameters = list(twin.parameters())
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters), "no set is the other's"


@pytest.mark.parametrize("name", SEVERAL)
def test_a_specialized_state_dict_round_trips(name, tmp_path):
    one = disturb(specialize(MODELS[name](), preset_for(name)))
    save_file({key: value.contiguous() for key, value in one.state_dict().items()}, tmp_path / "weights.safetensors")
    two = specialize(MODELS[name](), preset_for(name))
    two.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(outputs(one, images(name)), outputs(two, images(name)))
    assert has_two_sets(one.state_dict())
    assert not has_two_sets(MODELS[name]().state_dict())


def test_state_dicts_of_other_specializations_and_of_wrapped_models():
    norms = specialize(MODELS["timm_vit"](), "norms")
    paper = specialize(MODELS["timm_vit"](), "qkv_all")
    paper.load_state_dict(norms.state_dict())  # its qkv goes into both sets
    with pytest.raises(RuntimeError, match=r"Unexpected key.*blocks\.0\.attn\.qkv\.cls\.weight"):
        norms.load_state_dict(paper.state_dict())
    wrapper = nn.ModuleDict({"backbone": paper, "head": nn.Linear(5, 2)})
    state = {f"backbone.{key}": value for key, value in MODELS["timm_vit"]().state_dict().items()}
    wrapper.load_state_dict(state | {f"head.{key}": value for key, value in wrapper["head"].state_dict().items()})
    state = paper.state_dict()
    del state["blocks.0.norm1.patch.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.0\.norm1\.patch\.weight"):
        paper.load_state_dict(state)


@pytest.mark.parametrize("name", SEVERAL)
def test_merge_undoes_an_untrained_specialization(name):
    standard, x = MODELS[name](), images(name)
    merged = merge(specialize(MODELS[name](), preset_for(name)), x)
    assert merged.model.state_dict().keys() == standard.state_dict().keys()
    assert [key for key, _ in merged.model.named_modules()] == [key for key, _ in standard.named_modules()]
    assert all(torch.equal(value, merged.model.state_dict()[key]) for key, value in standard.state_dict().items())
    assert set(merged.change.values()) == {0}
    assert min(merged.cosine.values()) > 0.9999
    assert plan_of(merged.model) is None
    assert hooks(merged.model) == hooks(standard)
    assert getattr(merged.model, "pretrained_cfg", None) == getattr(standard, "pretrained_cfg", None)
    specialize(merged.model, "norms")


def test_merge_takes_the_mean_and_says_what_that_changes():
    model = specialize(MODELS["timm_vit"](), "norms")
    with torch.no_grad():
        model.norm.cls.bias += 2
        model.norm.patch.bias -= 1
    middle = (model.norm.cls.bias + model.norm.patch.bias) / 2
    merged = merge(model)
    torch.testing.assert_close(merged.model.norm.bias, middle)
    assert merged.images == "8 images of Gaussian noise"
    assert merged.change.keys() == merged.cosine.keys() == {"cls", "patch"}
    # Both sides move by 1.5 in each channel.
    assert merged.change["cls"] > 0.1
    assert merged.change["patch"] > 0.1
    with pytest.raises(ValueError, match="is not specialized: it has one set of weights already"):
        merge(model)


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_models_are_rebuilt_from_their_files_alone(preset, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=7)
    model = disturb(specialize(model, Specialization(**PRESETS[preset].to_dict() | {"registers": "patch"}))).eval()
    save(model, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    x = torch.randn(2, 3, 32, 32)
    rebuilt = timm.create_model(f"local-dir:{tmp_path / 'moved'}", pretrained=True).eval()
    loaded = load_model(f"local-dir:{tmp_path / 'moved'}", device="cpu")
    with torch.no_grad():
        assert torch.equal(rebuilt(x), model(x))
        assert torch.equal(loaded.module(x), model(x))
    assert loaded.image_size == (32, 32)
    assert not loaded.untrained
    assert plan_of(rebuilt) == plan_of(model)
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["config.json", "model.safetensors"]
    other = timm.create_model(f"local-dir:{tmp_path / 'moved'}", pretrained=True, num_classes=2)
    assert other.head.out_features == 2
    untrained = load_model(f"local-dir:{tmp_path / 'moved'}", pretrained=False, device="cpu")
    assert plan_of(untrained.module) == plan_of(model)


def test_timm_saves_and_loads_specialized_models_itself(tmp_path):
    model = disturb(timm.create_model("vit_tiny_patch16_224_specialized", depth=3, img_size=32, num_classes=0)).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "specialized_vit"
    assert config["pretrained_cfg"]["specialized"]["architecture"] == "vit_tiny_patch16_224"
    rebuilt = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), model(x))


def test_only_models_that_can_be_rebuilt_are_saved(tmp_path):
    with pytest.raises(ValueError, match="is not specialized; specialize it first"):
        save(MODELS["timm_vit"](), tmp_path)
    with pytest.raises(ValueError, match=r"was not made by timm\.create_model"):
        save(specialize(MODELS["hf_vit"](), "norms"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SIZES)
def test_names_in_timm(name):
    with torch.device("meta"):
        model = timm.create_model(f"{name}_specialized", num_classes=0)
    assert plan_of(model).specialization == PRESETS["paper"]
    assert timm.is_model(name)


def test_names_in_timm_take_another_specialization_and_a_checkpoint(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224_specialized", specialization="norms", depth=2)
    assert plan_of(model).specialization == PRESETS["norms"]
    save_file(timm.create_model("vit_tiny_patch16_224", depth=2).state_dict(), tmp_path / "standard.safetensors")
    timm.create_model(
        "vit_tiny_patch16_224_specialized", depth=2, checkpoint_path=str(tmp_path / "standard.safetensors")
    )
    with pytest.raises(ValueError, match="specialized_vit needs architecture"):
        timm.create_model("specialized_vit")


@pytest.mark.parametrize(
    "order", ["import tokenlens, timm", "import timm, tokenlens", "import tokenlens.specialization, timm"]
)
def test_the_names_are_there_in_whatever_order_things_are_imported(order, tmp_path):
    code = (
        "import importlib.util; import tokenlens; assert importlib.util.find_spec('timm').loader is not None; "
        if order.startswith("import tokenlens,")
        else ""
    ) + f"{order}; assert timm.is_model('vit_small_patch16_224_specialized'); print(timm.__spec__.loader)"
    exit_code, stdout, stderr = finished(process("-c", code, cwd=tmp_path))
    assert exit_code == 0, stderr
    assert "SourceFileLoader" in stdout


def test_specialized_names_in_tokenlens(weights, tmp_path):
    plain = load_model("test_vit", checkpoint=weights, img_size=64, device="cpu")
    twin = load_model("specialized:paper:test_vit", checkpoint=weights, img_size=64, device="cpu")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twin.module(x), plain.module(x), rtol=1e-5, atol=1e-5)
    assert twin.name == "specialized:paper:test_vit"
    assert twin.weights["pretrained"]
    assert "state_dict" not in twin.module.pretrained_cfg
    # Its own weights load by the same name.
    save_file(disturb(twin.module).state_dict(), tmp_path / "trained.safetensors")
    file = tmp_path / "trained.safetensors"
    again = load_model("specialized:paper:test_vit", checkpoint=file, img_size=64, device="cpu")
    with torch.no_grad():
        assert torch.equal(again.module(x), twin.module(x))
    assert load_model("specialized:norms:test_vit", pretrained=False, device="cpu").untrained
    assert isinstance(
        load_model("vit_tiny_patch16_224_specialized", pretrained=False, device="cpu").module.norm, SpecializedModule
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("specialized:papr:test_vit", LookupError, "no specialization is called 'papr'. Did you mean paper"),
        ("specialized:test_vit", LookupError, "a specialized model is specialized:PRESET:NAME"),
        ("specialized:paper:test_vitt", LookupError, "no model is called 'test_vitt'"),
        ("specialized:paper:specialized:norms:test_vit", ValueError, "is specialized already"),
        ("specialized:paper:vit_base_patch16_siglip_224", ValueError, "has only patches"),
    ],
)
def test_wrong_specialized_names_get_a_clear_sentence(name, error, message):
    with pytest.raises(error, match=message):
        load_model(name, pretrained=False)


def test_specialized_models_are_analyzed_by_name():
    analysis = tokenlens.analyze(
        "specialized:paper:test_vit",
        pretrained=False,
        img_size=64,
        limit=2,
        device="cpu",
        metrics=["cls_patch_cosine", "norm_differentiation", "weight_distance"],
    )
    distances = analysis.select("weight_distance", part="relative_distance")
    assert len(distances) > 10
    assert (distances["value"] == 0).all()
    assert set(distances["site"]) >= {"norm/norm1.weight", "qkv/attn.qkv.weight", "norm/norm.bias"}
    assert set(distances.loc[distances["site"] == "qkv/attn.qkv.weight", "block"]) == {0, 1}


DATA = os.environ.get("TOKENLENS_TEST_DATA")


@pytest.mark.pretrained
@pytest.mark.skipif(not DATA, reason="TOKENLENS_TEST_DATA is not set: no real weights")
@pytest.mark.parametrize("preset", PRESETS)
def test_real_weights_give_the_same_features(preset):
    from PIL import Image

    file = Path(DATA or "") / "weights" / "dinov2_vits14.safetensors"
    standard = load_model("vit_small_patch14_dinov2", checkpoint=file, img_size=224, device="cpu")
    twin = load_model(f"specialized:{preset}:vit_small_patch14_dinov2", checkpoint=file, img_size=224, device="cpu")
    photographs = sorted((Path(DATA or "") / "photos").glob("*.jp*g"))[:2]
    x = torch.stack([standard.transform()(Image.open(path).convert("RGB")) for path in photographs])
    with torch.no_grad():
        before, after = standard.module.forward_features(x), twin.module.forward_features(x)
    assert torch.equal(before, after)
