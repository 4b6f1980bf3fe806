"""Specialized models on a hub that is a folder: pushed by timm, loaded by timm and tokenlens, elsewhere and alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

import tokenlens
from tests.specialization.test_saved import disturb
from tests.support.command_line import finished, process
from tokenlens import Specialization, merge, specialize
from tokenlens.models.loading import load_model
from tokenlens.specialization._plan import plan_of
from tokenlens.specialization._save import save


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``huggingface_hub`` without a network: repositories are folders, downloads are copies into snapshots."""
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
    monkeypatch.setattr("tokenlens.storage.downloads.unreachable", lambda url: None)
    return repositories


def trained(**options):
    """A specialized model whose sets are apart."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=7, **options)
    return disturb(specialize(model, Specialization(norm="all", qkv=[0, -1], mlp="first_half"))).eval()


@torch.no_grad()
def logits(model):
    return model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_pushed_and_loaded_by_name(hub):
    model = trained()
    timm.models.push_to_hf_hub(model, "somebody/twin")
    assert {path.name for path in (hub / "somebody" / "twin").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
    }
    by_timm = timm.create_model("hf-hub:somebody/twin", pretrained=True).eval()
    loaded = load_model("hf-hub:somebody/twin", device="cpu")
    for other in (by_timm, loaded.module):
        assert torch.equal(logits(other), logits(model))
        assert plan_of(other) == plan_of(model)
    assert loaded.image_size == (32, 32)
    assert not loaded.untrained
    assert loaded.weights["source"] == "hf-hub:somebody/twin/model.safetensors"
    untrained = load_model("hf-hub:somebody/twin", pretrained=False, device="cpu")
    assert plan_of(untrained.module) == plan_of(model)
    assert untrained.untrained


def test_analyzed_by_name(hub):
    timm.models.push_to_hf_hub(trained(), "somebody/twin")
    analysis = tokenlens.analyze("hf-hub:somebody/twin", limit=2, device="cpu", metrics=["weight_distance"])
    assert analysis.model == "hf-hub:somebody/twin"
    assert (analysis.select("weight_distance", part="relative_distance")["value"] > 0).all()
    assert analysis.provenance["specialization"]["qkv"] == [0, -1]


def test_what_is_saved_is_what_is_pushed(hub, tmp_path):
    model = trained()
    timm.models.push_to_hf_hub(model, "somebody/twin", safe_serialization=True)
    save(model, tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (hub / "somebody" / "twin" / name).read_bytes(), name


def test_a_merged_model_is_pushed_as_a_standard_one(hub):
    model = merge(trained()).model.eval()
    timm.models.push_to_hf_hub(model, "somebody/merged")
    loaded = load_model("hf-hub:somebody/merged", device="cpu").module
    assert plan_of(loaded) is None
    assert torch.equal(logits(loaded), logits(model))


def test_a_repository_without_weights_is_refused_in_a_sentence(hub):
    timm.models.push_to_hf_hub(trained(), "somebody/twin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (hub / "somebody" / "twin" / name).unlink()
    with pytest.raises(ValueError, match=r"the hub's somebody/twin has none of model\.safetensors"):
        load_model("hf-hub:somebody/twin", device="cpu")


REBUILD = """
import sys, torch, {imports}
from safetensors.torch import load_file, save_file
given = load_file("given.safetensors")["x"]
model = {load}
with torch.no_grad():
    save_file({{"y": model.eval()(given)}}, "found.safetensors")
assert "vit_tiny_patch16_224" in open("model/config.json").read()
"""
WAYS = {
    "timm": ("timm, tokenlens", 'timm.create_model("local-dir:model", pretrained=True)'),
    "tokenlens": (
        "tokenlens.models.loading",
        'tokenlens.models.loading.load_model("local-dir:model", device="cpu").module',
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_rebuilt_on_another_machine_from_its_files_alone(way, tmp_path):
    """Another process, in another folder, which has the two files and nothing else of where they were made."""
    model = trained()
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    save(model, made)
    elsewhere.mkdir()
    shutil.move(made, elsewhere / "model")
    assert sorted(path.name for path in (elsewhere / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert str(tmp_path) not in (elsewhere / "model" / "config.json").read_text(encoding="utf-8")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, elsewhere / "given.safetensors")
    imports, load = WAYS[way]
    Path(elsewhere, "rebuild.py").write_text(REBUILD.format(imports=imports, load=load), encoding="utf-8")
    exit_code, _, stderr = finished(process("rebuild.py", cwd=elsewhere, HF_HOME=str(elsewhere / "no cache")))
    assert exit_code == 0, stderr
    with torch.no_grad():
        torch.testing.assert_close(load_file(elsewhere / "found.safetensors")["y"], model(x), rtol=1e-5, atol=1e-5)
