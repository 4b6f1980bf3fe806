"""The models that come with tokenlens: loaded by name without a network, by all functions and commands."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tokenlens
from tests.support.command_line import finished, process
from tests.support.command_line import tokenlens as command
from tokenlens.models import create_meta_model, load_model, shipped
from tokenlens.models.names import find_weights_file
from tokenlens.specialization._plan import get_plan
from tokenlens.specialization._specialization import PRESETS
from tokenlens.storage.hashing import file_sha256
from tokenlens.training.recipes.truncated_distill import RECIPE

NAMES = ("tokenlens_tiny", "tokenlens_tiny_specialized")
SECTIONS = ("Training", "Data and licences", "Probes", "Half precision", "Limits", "Reproduce")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Raise an error that no library takes for an unreachable host when anything connects."""

    def refuse(*_, **__):
        raise AssertionError("a shipped model needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def noise(size: int = 112) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens(model, size: int = 112) -> torch.Tensor:
    return model.eval().forward_features(noise(size))


def test_there_are_two():
    assert shipped.list_names() == NAMES
    with pytest.raises(LookupError, match="no model called 'huge' comes with tokenlens; available: tokenlens_tiny, "):
        shipped.find_folder("huge")
    for name, text in (
        ("tokenlens_tin", "Did you mean tokenlens_tiny"),
        ("tokenlens_tiny.v2", "no weights tagged 'v2'"),
    ):
        with pytest.raises(LookupError, match=text):
            load_model(name)


@pytest.mark.parametrize("name", NAMES)
def test_loaded_by_name_in_single_precision(name):
    loaded = load_model(name, device="cpu")
    assert (loaded.name, loaded.image_size, loaded.untrained) == (name, (112, 112), False)
    assert loaded.weights == {
        "source": f"shipped with tokenlens {tokenlens.__version__}, float16 to float32",
        "sha256": file_sha256(shipped.find_folder(name) / "model.safetensors"),
        "pretrained": True,
        "steps": ["float16 to float32"],
    }
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert len(loaded.module.blocks) == RECIPE.model_options["depth"]
    assert loaded.module.embed_dim == 384
    assert loaded.module.pos_embed.shape[1] == 1 + 8 * 8
    assert (get_plan(loaded.module) is not None) == name.endswith("_specialized")
    counts = {sum(p.numel() for p in each.parameters()) for each in (create_meta_model(name), loaded.module)}
    assert len(counts) == 1


def test_the_specialized_one_is_the_papers():
    plan = get_plan(load_model(NAMES[1], device="cpu").module)
    standard = load_model(f"specialized:paper:{NAMES[0]}", device="cpu").module
    assert plan == get_plan(standard)
    assert plan.specialization == PRESETS["paper"]
    assert torch.allclose(tokens(standard), tokens(load_model(NAMES[0], device="cpu").module), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_files_in_the_folder(name):
    folder = shipped.find_folder(name)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "MODEL_CARD.md", "NOTICE"}
    assert (folder / "model.safetensors").stat().st_size <= 16_000_000
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "tag" not in config["pretrained_cfg"], "timm's own weights of the architecture have one"


@pytest.mark.parametrize("name", NAMES)
def test_the_card(name):
    card = (shipped.find_folder(name) / shipped.CARD).read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n\n{shipped.describe(name)}\n")
    assert tuple(re.findall(r"^## (.+)$", card, re.M)) == SECTIONS
    assert file_sha256(shipped.find_folder(name) / "model.safetensors") in card
    for setting in ("lr", "batch_size", "seed", "objective_options.teacher", "model_options.depth"):
        assert re.search(rf"^\| `{re.escape(setting)}` \| \S", card, re.M), setting
    assert "research use" in card
    assert "Apache-2.0 (see NOTICE)" in card
    assert "decided before any score was seen" in card
    assert re.search(r"^\| segmentation \|.*\*\*this model\*\*", card, re.M)
    assert float(re.search(r"by ([\d.]+) % at most", card)[1]) < 0.5, "what float16 may move"
    assert not re.search(r"(?<![\w.:/-])/[a-z]+/", card), "folders of one machine"


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_on_request(name):
    first, again = (load_model(name, pretrained=False, device="cpu", seed=3) for _ in range(2))
    assert first.untrained
    assert first.weights["sha256"] == again.weights["sha256"]
    assert "random initialisation, seed 3" in first.weights["source"]
    assert not torch.allclose(tokens(first.module), tokens(load_model(name, device="cpu").module))


def test_first_in_the_list():
    lines = command("list", "models", "--limit", 2).stdout.splitlines()
    assert len(lines) == len(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        assert re.fullmatch(rf"{name} +112 px  patch 14 +7\.[48] M  no download", line)


def test_functions_and_commands_accept_the_name(tmp_path):
    quick = {"limit": 2, "device": "cpu"}
    comparison = tokenlens.compare(*NAMES, **quick, metrics=["cls_patch_cosine"])
    assert set(comparison.labels) == set(NAMES)
    recording = tokenlens.record(NAMES[0], device="cpu", blocks=[0])
    assert recording.model == NAMES[0]
    saved = command("specialize", NAMES[0], "--preset", "norms", "--out", tmp_path / "saved")
    assert saved.exit_code == 0, saved.stderr
    plan = get_plan(load_model(f"local-dir:{tmp_path / 'saved'}", device="cpu").module)
    assert plan.specialization == PRESETS["norms"]


def test_a_training_starts_from_it(tmp_path):
    assert find_weights_file("tokenlens_tiny") == shipped.find_folder("tokenlens_tiny") / "model.safetensors"
    assert find_weights_file(tmp_path / "other.pth") == tmp_path / "other.pth"
    (tmp_path / "run.json").write_text('{"kind": "training"}', encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    assert find_weights_file(tmp_path) == tmp_path / "model.safetensors"


def test_analyze_needs_no_download(tmp_path):
    """Nor an import of tokenlens.models.timm_registration by the user, also for a specialized model."""
    options = ("--limit", 2, "--device", "cpu", "--metrics", "cls_patch_cosine", "--no-report")
    running = process(
        *("-m", "tokenlens_cli", "analyze", "tokenlens_tiny_specialized", "--out", tmp_path / "run", *options),
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "no cache"),
        TORCH_HOME=str(tmp_path / "nor here"),
    )
    exit_code, _, stderr = finished(running)
    assert exit_code == 0, stderr
    settings = (tmp_path / "run" / "analysis.json").read_text(encoding="utf-8")
    assert f"shipped with tokenlens {tokenlens.__version__}" in settings
    assert not Path(tmp_path / "no cache").exists()
