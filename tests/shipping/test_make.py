"""Making a shipped model from a training: weights in half precision, configuration and card."""

import doctest
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tokenlens
from tests.models.test_shipped import SECTIONS
from tests.support.command_line import REPOSITORY
from tests.support.tiny_training import tiny_recipe, write_colours
from tokenlens.models.loading import load_model
from tokenlens.probes._probe import probe
from tokenlens.probes._result import ProbeResult
from tokenlens.storage.hashing import file_sha256
from tokenlens.training.trained_run import TrainedRun

pytest.importorskip("lightning_fabric", reason="training needs the extra [train]")


@pytest.fixture(scope="module")
def shipping():
    """Return the two scripts, which are not a package."""
    sys.path.insert(0, str(REPOSITORY / "shipping"))
    yield importlib.import_module("make"), importlib.import_module("card")
    sys.path.remove(str(REPOSITORY / "shipping"))
    del sys.modules["make"], sys.modules["card"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a finished training, and probes of it, of its untrained twin, and of pixels."""
    folder = tmp_path_factory.mktemp("shipping")
    data = write_colours(folder / "colours", per_class=20)
    run = tokenlens.train(tiny_recipe(specialization="norms"), data, folder / "run", device="cpu").path
    for name, options in (
        ("this", {"model": str(run)}),
        ("twin", {"model": str(run), "pretrained": False}),
        ("pixels", {"model": "raw_pixels"}),
    ):
        probe(task="knn", data=data, cache=False, device="cpu", **options).save(folder / name, report=False)
    return folder


@pytest.fixture(scope="module")
def made(shipping, folder):
    return shipping[0].make(
        folder / "run", "small", [folder / name for name in ("this", "twin", "pixels")], folder / "out"
    )


def test_the_weights_are_the_trainings_in_half_precision(folder, made):
    assert made == folder / "out" / "small"
    trained, kept = load_file(folder / "run" / "model.safetensors"), load_file(made / "model.safetensors")
    assert trained.keys() == kept.keys()
    assert all(torch.equal(tensor.half(), kept[name]) for name, tensor in trained.items())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, half = (load_model(f"local-dir:{f}", device="cpu").module(images) for f in (folder / "run", made))
    assert torch.allclose(whole, half, atol=2e-2)
    assert not torch.equal(whole, half)


def test_the_card(folder, made):
    card = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", card, re.M)) == SECTIONS
    assert "separate weights for CLS and patches (`norms`)" in card
    assert "a classifier of 3 classes" in card
    for name, value in (("seed", 0), ("lr", 0.001), ("model_options.depth", 2), ("specialization", "norms")):
        assert f"| `{name}` | {value} |" in card
    this = ProbeResult.load(folder / "this")
    assert (
        f"| **this model** | CLS token | {this.protocol['images']} | 0 | {100 * this.value:.1f} | "
        f"{100 * this.ci_low:.1f}–{100 * this.ci_high:.1f} | top-1 accuracy | {this.n} |"
    ) in card
    assert "| the same, untrained |" in card
    assert "| pixels, no model |" in card
    assert str(folder) not in card
    assert not (made / "NOTICE").exists(), "trained from random weights"


def test_weights_that_started_from_others_come_with_a_notice(shipping, folder, tmp_path):
    make, card = shipping
    run = tmp_path / "runs" / "standard_seed0"
    shutil.copytree(folder / "run", run)
    write_start(tmp_path / "start", "dinov2.safetensors: its first 2 of 12 blocks")
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    told["start"] = {"source": "dinov2.safetensors", "sha256": file_sha256(tmp_path / "start" / "model.safetensors")}
    options = {"teacher": "vit_small_patch14_dinov2"}
    told["recipe"] |= {"objective": "distill", "objective_options": options}
    (run / "run.json").write_text(json.dumps(told), encoding="utf-8")
    made = make.make(run, "small", out=tmp_path / "out")
    notice = (made / "NOTICE").read_text(encoding="utf-8")
    assert card.NOTICES["vit_small_patch14_dinov2"] in notice
    assert "only the first 2 of 12 blocks are kept" in " ".join(notice.split())
    assert "separate weights (preset norms)" in " ".join(notice.split())
    text = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "the first 2 of 12 blocks of DINOv2 ViT-S/14, distilled from all of them" in text
    assert "from the first 2 blocks of dinov2.safetensors, seed 0" in text
    write_start(tmp_path / "start", "dinov2.safetensors: its first 2 of 12 blocks", changed=True)
    assert make.find_start_blocks(TrainedRun.load(run)) is None, "another start than the training's"


def write_start(folder: Path, source: str, changed: bool = False) -> None:
    """Write the folder in which a verification keeps its start."""
    folder.mkdir(exist_ok=True)
    (folder / "start.json").write_text(json.dumps({"source": source}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"changed" if changed else b"weights")


def test_nothing_else_is_left_and_it_is_made_again(shipping, folder, made):
    weights = (made / "model.safetensors").read_bytes()
    assert shipping[0].make(folder / "run", "small", [], folder / "out") == made
    assert (made / "model.safetensors").read_bytes() == weights
    assert "No probe was run." in (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert [path.name for path in (folder / "out").iterdir()] == ["small"]


def test_what_must_not_ship_is_refused(shipping, folder, tmp_path):
    make = shipping[0]
    with pytest.raises(ValueError, match="float16 does not hold the weights weight"):
        make.to_float16(torch.nn.Linear(1, 1, bias=False).apply(lambda module: module.weight.data.fill_(1e5)))
    for name in ("run", "this"):
        shutil.copytree(folder / name, tmp_path / name)
    told = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "run.json").write_text(json.dumps(told | {"state": "stopped"}), encoding="utf-8")
    with pytest.raises(ValueError, match="is stopped at step 4; only a finished training ships"):
        make.make(tmp_path / "run", "small", out=tmp_path / "out")
    foreign = ProbeResult.load(folder / "this")
    foreign.provenance["identity"]["weights"] = "0" * 64
    foreign.save(tmp_path / "foreign", report=False)
    with pytest.raises(ValueError, match="was made with other weights"):
        make.make(folder / "run", "small", [tmp_path / "foreign"], tmp_path / "out")
    other = told["recipe"] | {"objective": "distill", "objective_options": {"teacher": "vit_giant_patch14_dinov2"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(told | {"recipe": other}), encoding="utf-8")
    with pytest.raises(ValueError, match="no licence for the teacher 'vit_giant_patch14_dinov2'"):
        make.make(tmp_path / "run", "small", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_doctests_of_the_card(shipping):
    found = doctest.testmod(shipping[1])
    assert found.attempted
    assert not found.failed
