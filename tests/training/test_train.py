"""A training from call to run folder, by the same rules for standard and specialized models."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch

from tests.support.tiny_training import OPTIONS, tiny_recipe, train, train_and_report
from tokenlens.specialization import get_plan
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.objectives.supervised import Supervised
from tokenlens.training.recipe import Recipe


@pytest.fixture(scope="module")
def calls():
    """The calls of the progress of ``run``."""
    return []


@pytest.fixture(scope="module")
def run(data, calls, tmp_path_factory):
    """A specialized model after four steps."""
    recipe = tiny_recipe(specialization="paper", diagnose_every=3)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train_and_report(recipe, data, out, progress=lambda *now: calls.append(now))


def test_a_finished_run_has_all_of_its_files(run):
    assert run.finished
    files = set(check_manifest(run.path)["files"])
    assert files >= {"run.json", "metrics.csv", "diagnostics.csv", "README.md", "config.json", "model.safetensors"}
    assert files >= {"report.html", "figures/emergence.svg", "checkpoints/step_00000004.ckpt"}
    assert any(name.startswith("tensorboard/") for name in files)
    assert not [name for name in files if "unfinished" in name or "lock" in name]


def test_the_run_records_what_is_needed_to_repeat_it(run, data):
    settings = run.settings
    assert Recipe.from_dict(settings["recipe"]) == run.recipe == tiny_recipe(specialization="paper", diagnose_every=3)
    assert settings["data"]["given"] == str(data)
    found = [settings[name] for name in ("kind", "seed", "steps", "step", "skipped")]
    assert found == ["training", 0, 4, 4, 0]
    assert {"torch", "timm", "lightning-fabric", "lightly"} <= set(settings["versions"])
    assert settings["hardware"]["device"] == "cpu"
    assert settings["images_per_second"] > 0
    assert 0 <= settings["data_wait_share"] <= 1
    assert "specialized (paper), seed 0" in (run.path / "README.md").read_text(encoding="utf-8")


def test_metrics_have_a_row_every_few_steps(run, calls):
    assert list(run.metrics["step"]) == [1, 2, 4]
    columns = ["step", "epoch", "loss", "lr", "weight_decay", "grad_norm", "images_per_second"]
    assert list(run.metrics.columns) == columns
    assert run.metrics["epoch"].iloc[-1] == pytest.approx(4 * 8 / run.settings["data"]["count"])
    losses = [numbers["loss"] for _, _, numbers in calls]
    assert run.metrics["loss"].tolist() == [losses[0], losses[1], (losses[2] + losses[3]) / 2]
    assert [(done, steps) for done, steps, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert calls[-1][2]["eta_seconds"] == 0


def test_diagnostics_are_of_a_fixed_batch(run):
    table = run.diagnostics
    assert sorted(set(table["step"])) == [0, 3, 4]
    sites = {metric: set(rows["site"]) for metric, rows in table.groupby("metric")}
    assert sites == {
        "norm_differentiation": {"norm1", "final_norm"},
        "cls_patch_cosine": {"norm1", "resid_post"},
        "token_norm": {"resid_post"},
    }
    assert set(table["n"]) == {run.settings["data"]["count"]}
    assert table[table["site"] == "final_norm"]["block"].isna().all()


def test_the_model_of_a_run_is_loaded_by_name(run):
    model = run.model()
    assert not model.training
    assert get_plan(model) is not None
    assert model.num_classes == 3
    by_timm = timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_timm(x), model(x))


def test_the_default_folder_is_named_after_recipe_preset_and_seed(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(tiny_recipe(steps=1), data, name="tiny", specialize="norms", seed=7)
    assert run.path.as_posix() == "runs/tiny_norms_seed7"
    assert (run.recipe.specialization, run.recipe.seed) == ("norms", 7)


def test_training_learns(data, tmp_path):
    plain = {"mixup": 0, "cutmix": 0, "three_augment": False}  # colours are all there is to learn
    recipe = tiny_recipe(objective_options=plain, steps=40, lr=3e-3, log_every=5)
    run = train(recipe, data, tmp_path / "run")
    assert run.metrics["accuracy"].iloc[-1] > 0.9
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0] / 2


def test_standard_and_specialized_see_the_same_and_start_with_the_same_loss(data, tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    forward = Supervised.forward

    def watched(self, batch, progress):
        state = random.random(), float(np.random.rand()), float(torch.rand(()))
        view = batch.views[0]
        seen.setdefault(name, []).append((batch.indices.tolist(), view.double().sum().item(), state))
        return forward(self, batch, progress)

    monkeypatch.setattr(Supervised, "forward", watched)
    losses = {}
    options = {**OPTIONS, "drop_path_rate": 0.3, "init_values": 1e-2}
    for name in ("standard", "paper", "everything"):
        specialize = None if name == "standard" else name
        run = train(tiny_recipe(log_every=1, model_options=options), data, tmp_path / name, specialize=specialize)
        losses[name] = run.metrics["loss"].tolist()
    assert seen["standard"] == seen["paper"] == seen["everything"]
    assert losses["standard"][0] == losses["paper"][0] == losses["everything"][0]
    assert losses["standard"][1:] != losses["paper"][1:]


def test_another_seed_is_another_training(data, tmp_path):
    losses = [train(tiny_recipe(steps=1), data, tmp_path / str(seed), seed=seed).metrics["loss"][0] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_random_states_of_the_caller_are_unchanged(data, tmp_path):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    train(tiny_recipe(steps=2), data, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]
