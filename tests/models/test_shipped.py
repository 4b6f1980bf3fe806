"""The models that come with tokenlens: found by name, without a network, everywhere a model's name is taken."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import tokenlens
from tests.support.command_line import finished, process
from tests.support.command_line import tokenlens as command
from tokenlens.models import shipped
from tokenlens.models.loading import load_model, sketch_model
from tokenlens.models.names import weights_file
from tokenlens.specialization._plan import plan_of
from tokenlens.specialization._specialization import PRESETS
from tokenlens.storage.hashing import file_sha256
from tokenlens.training.recipes.tiny_distill import RECIPE

NAMES = ("tokenlens_tiny", "tokenlens_tiny_specialized")
SECTIONS = ("Training", "Data and licences", "Probes", "Half precision", "Limits", "To make it again")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks for a connection gets an error that no library takes for an unreachable host."""

    def refuse(*_, **__):
        raise AssertionError("a shipped model needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def noise(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens(model, size: int = 64) -> torch.Tensor:
    return model.eval().forward_features(noise(size))


def test_there_are_two():
    assert shipped.names() == NAMES
    with pytest.raises(LookupError, match="no model called 'huge' comes with tokenlens; available: tokenlens_tiny, "):
        shipped.folder_of("huge")


@pytest.mark.parametrize("name", NAMES)
def test_loaded_by_name_in_single_precision(name):
    loaded = load_model(name, device="cpu")
    assert (loaded.name, loaded.image_size, loaded.untrained) == (name, (64, 64), False)
    assert loaded.weights == {
        "source": f"shipped with tokenlens {tokenlens.__version__}",
        "sha256": file_sha256(shipped.folder_of(name) / "model.safetensors"),
        "pretrained": True,
    }
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert len(loaded.module.blocks) == RECIPE.model_options["depth"]
    assert loaded.module.embed_dim == RECIPE.model_options["embed_dim"]
    assert (plan_of(loaded.module) is not None) == name.endswith("_specialized")
    assert sum(p.numel() for p in sketch_model(name).parameters()) == sum(p.numel() for p in loaded.module.parameters())


def test_the_specialized_one_is_the_papers():
    plan = plan_of(load_model(NAMES[1], device="cpu").module)
    standard = load_model(f"specialized:paper:{NAMES[0]}", device="cpu").module
    assert plan == plan_of(standard)
    assert plan.specialization == PRESETS["paper"]
    assert torch.allclose(tokens(standard), tokens(load_model(NAMES[0], device="cpu").module), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_in_the_folder(name):
    folder = shipped.folder_of(name)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "MODEL_CARD.md"}
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "tag" not in config["pretrained_cfg"], "timm's own weights of the architecture have one"


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_it_must(name):
    card = (shipped.folder_of(name) / shipped.CARD).read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n\n{shipped.describe(name)}\n")
    assert tuple(re.findall(r"^## (.+)$", card, re.M)) == SECTIONS
    assert file_sha256(shipped.folder_of(name) / "model.safetensors") in card
    for setting in ("lr", "batch_size", "seed", "objective_options.teacher", "model_options.patch_size"):
        assert re.search(rf"^\| `{re.escape(setting)}` \| \S", card, re.M), setting
    assert "research use" in card
    assert "Apache-2.0" in card
    assert float(re.search(r"by ([\d.]+) % at most", card)[1]) < 0.5, "what float16 may move"
    assert not re.search(r"(?<![\w.:/-])/[a-z]+/", card), "folders of one machine"


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("name", NAMES)
def test_timm_makes_the_same_model(name, size):
    loaded = load_model(name, device="cpu", img_size=size)
    made = timm.create_model(name, pretrained=True, img_size=size)
    assert torch.equal(tokens(made, size), tokens(loaded.module, size))
    assert ("pos_embed resampled" in loaded.weights["source"]) == (size != 64)
    assert plan_of(made) == plan_of(loaded.module)
    assert "state_dict" not in made.pretrained_cfg
    if size == 64:
        assert torch.equal(tokens(made), tokens(timm.create_model(f"local-dir:{shipped.folder_of(name)}", True)))


@pytest.mark.parametrize("name", NAMES)
def test_in_timms_registry_like_any_pretrained_model(name):
    assert name in timm.list_models(pretrained=True)
    assert timm.create_model(name, pretrained=True, num_classes=5)(noise()).shape == (2, 5)
    told = timm.models.resolve_model_input_args(name)  # as timm's own scripts make a model
    made = timm.create_model(pretrained=True, **told)
    assert torch.equal(tokens(made), tokens(load_model(name, device="cpu").module))
    assert list(timm.data.resolve_model_data_config(made)["input_size"]) == [3, 64, 64]
    with pytest.raises(RuntimeError, match="goes without a tag"):
        timm.create_model(f"{name}.v2")


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_on_request(name):
    first, again = (load_model(name, pretrained=False, device="cpu", seed=3) for _ in range(2))
    assert first.untrained
    assert first.weights["sha256"] == again.weights["sha256"]
    assert "random initialisation, seed 3" in first.weights["source"]
    assert not torch.allclose(tokens(first.module), tokens(load_model(name, device="cpu").module))
    assert not torch.equal(timm.create_model(name).pos_embed, timm.create_model(name, pretrained=True).pos_embed), (
        "timm's default is random"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [("tokenlens_tin", "Did you mean tokenlens_tiny"), ("tokenlens_tiny.v2", "no weights tagged 'v2'")],
)
def test_near_names(name, said):
    with pytest.raises(LookupError, match=re.escape(said)):
        load_model(name)


def test_first_in_the_list():
    lines = command("list", "models", "--limit", 2).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all("distilled from DINOv2 ViT-S/14" in line for line in lines)


def test_everything_takes_the_name(tmp_path):
    quick = {"limit": 2, "device": "cpu"}
    comparison = tokenlens.compare(*NAMES, **quick, metrics=["cls_patch_cosine"])
    assert set(comparison.labels) == set(NAMES)
    recording = tokenlens.record(NAMES[0], device="cpu", blocks=[0])
    assert recording.model == NAMES[0]
    saved = command("specialize", NAMES[0], "--preset", "norms", "--out", tmp_path / "own")
    assert saved.exit_code == 0, saved.stderr
    assert plan_of(load_model(f"local-dir:{tmp_path / 'own'}", device="cpu").module).specialization == PRESETS["norms"]


def test_a_training_starts_from_it(tmp_path):
    assert weights_file("tokenlens_tiny") == shipped.folder_of("tokenlens_tiny") / "model.safetensors"
    assert weights_file(tmp_path / "other.pth") == tmp_path / "other.pth"
    (tmp_path / "run.json").write_text('{"kind": "training"}', encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    assert weights_file(tmp_path) == tmp_path / "model.safetensors"


def test_the_main_job_needs_no_download(tmp_path):
    running = process(
        "-m",
        "tokenlens_cli",
        "analyze",
        "tokenlens_tiny",
        "--limit",
        4,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
        "--no-report",
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "no cache"),
        TORCH_HOME=str(tmp_path / "nor here"),
    )
    exit_code, _, stderr = finished(running)
    assert exit_code == 0, stderr
    told = json.loads((tmp_path / "run" / "analysis.json").read_text(encoding="utf-8"))
    assert f"shipped with tokenlens {tokenlens.__version__}" in json.dumps(told)
    assert not Path(tmp_path / "no cache").exists()
