"""Saved, pushed and rebuilt specialized models; the Hugging Face hub is a folder."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

import tokenlens
from tests.support.command_line import finished, process
from tests.support.specialized_models import perturb
from tests.support.tiny_models import MODELS
from tokenlens import Specialization, merge, specialize
from tokenlens.models.loading import load_model
from tokenlens.specialization import PRESETS, get_plan, save

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CHOICE = Specialization(norm="all", qkv=[0, -1], mlp="first_half")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Replace the network: repositories are folders, downloads are copies into snapshots."""
    repositories, snapshots = tmp_path / "hub", tmp_path / "cache"

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            (repositories / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, *, repo_id, filename, **_):
            return (repositories / repo_id / filename).is_file()

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, repositories / repo_id, dirs_exist_ok=True)

    def download(repo_id, filename, **_):
        if not (repositories / repo_id / filename).is_file():
            raise EntryNotFoundError(f"{repo_id} has no {filename}")
        (snapshots / repo_id).mkdir(parents=True, exist_ok=True)
        return shutil.copy(repositories / repo_id / filename, snapshots / repo_id / filename)

    def cached(repo_id, filename, **_):
        file = snapshots / repo_id / filename
        return str(file) if file.is_file() else None

    monkeypatch.setattr("timm.models._hub.HfApi", Api)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr("tokenlens.storage.downloads.why_unreachable", lambda url: None)
    return repositories


def trained(specialization=CHOICE):
    """Return a small specialized model whose weights differ."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=7)
    return perturb(specialize(model, specialization)).eval()


def check_rebuilt(name, model):
    """Check that timm and tokenlens rebuild a saved model, and return how tokenlens loads it."""
    by_timm, loaded = timm.create_model(name, pretrained=True).eval(), load_model(name, device="cpu")
    for rebuilt in (by_timm, loaded.module):
        assert torch.equal(logits(rebuilt), logits(model))
        assert get_plan(rebuilt) == get_plan(model)
    assert (loaded.image_size, loaded.untrained) == ((32, 32), False)
    untrained = load_model(name, pretrained=False, device="cpu")
    assert (get_plan(untrained.module), untrained.untrained) == (get_plan(model), True)
    return loaded


def logits(model):
    with torch.no_grad():
        return model(X)


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_models_are_rebuilt(preset, tmp_path):
    model = trained(Specialization(**PRESETS[preset].to_dict() | {"registers": "patch"}))
    save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    check_rebuilt(f"local-dir:{tmp_path}", model)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).head.out_features == 2


def test_only_models_that_can_be_rebuilt_are_saved(tmp_path):
    with pytest.raises(ValueError, match="is not specialized; specialize it first"):
        save(MODELS["timm_vit"](), tmp_path)
    with pytest.raises(ValueError, match=r"was not made by timm\.create_model"):
        save(specialize(MODELS["hf_vit"](), "norms"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pushed_model_is_loaded_and_analyzed_by_name(hub, tmp_path):
    model, name = trained(), "hf-hub:somebody/twin"
    timm.models.push_to_hf_hub(model, "somebody/twin", safe_serialization=True)
    save(model, tmp_path / "saved")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (hub / "somebody" / "twin" / file).read_bytes(), file
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architecture"] == "specialized_vit"
    assert config["pretrained_cfg"]["specialized"]["architecture"] == "vit_tiny_patch16_224"
    assert check_rebuilt(name, model).weights["source"] == f"{name}/model.safetensors"
    analysis = tokenlens.analyze(name, limit=2, device="cpu", metrics=["weight_distance"])
    assert analysis.model == name
    assert (analysis.select("weight_distance", part="relative_distance")["value"] > 0).all()
    assert analysis.provenance["specialization"]["qkv"] == [0, -1]


def test_a_merged_model_is_pushed_as_a_standard_one(hub):
    model = merge(trained()).model.eval()
    timm.models.push_to_hf_hub(model, "somebody/merged")
    loaded = load_model("hf-hub:somebody/merged", device="cpu").module
    assert get_plan(loaded) is None
    assert torch.equal(logits(loaded), logits(model))


REBUILD = """
import timm, tokenlens
from safetensors.torch import load_file, save_file

assert not timm.is_model("specialized_vit"), "import tokenlens alone changes nothing in timm"
import tokenlens.models.timm_registration

assert timm.is_model("vit_small_patch16_224_specialized") and timm.is_model("tokenlens_tiny")
model = timm.create_model("local-dir:model", pretrained=True).eval()
save_file({"y": model(load_file("given.safetensors")["x"]).detach()}, "found.safetensors")
"""


def test_timm_rebuilds_a_saved_model_elsewhere_after_the_documented_import(tmp_path):
    """In another process and folder, which has the two files alone."""
    model = trained()
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    save(model, made)
    elsewhere.mkdir()
    shutil.move(made, elsewhere / "model")
    assert str(tmp_path) not in (elsewhere / "model" / "config.json").read_text(encoding="utf-8")
    save_file({"x": X}, elsewhere / "given.safetensors")
    exit_code, _, stderr = finished(process("-c", REBUILD, cwd=elsewhere, HF_HOME=str(elsewhere / "no cache")))
    assert exit_code == 0, stderr
    torch.testing.assert_close(load_file(elsewhere / "found.safetensors")["y"], logits(model), rtol=1e-5, atol=1e-5)
