"""Training: the same rules for standard and specialized models, and a run folder that says what was done."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tokenlens
from tests.support.tiny_training import OPTIONS, colours, tiny_recipe
from tokenlens.specialization._plan import plan_of
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.objectives.supervised import Supervised
from tokenlens.training.optimizer import learning_rate, parameter_groups
from tokenlens.training.recipe import Recipe
from tokenlens.training.run import TrainedRun
from tokenlens.training.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A specialized model after four steps, and what was told on the way."""
    told = []
    recipe = tiny_recipe(specialization="paper", diagnose_every=3)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(recipe, data, out, progress=lambda *now: told.append(now)), told


def weights_of(run: TrainedRun) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model.safetensors")


# -- the run folder


def test_a_finished_run_has_all_of_its_files(run):
    run, _ = run
    assert run.finished
    files = set(check_manifest(run.path)["files"])
    assert files >= {
        "run.json",
        "metrics.csv",
        "diagnostics.csv",
        "README.md",
        "config.json",
        "model.safetensors",
        "checkpoints/step_00000004.ckpt",
    }
    assert any(name.startswith("tensorboard/") for name in files)
    assert not [name for name in files if "unfinished" in name or "lock" in name]


def test_the_run_says_what_is_needed_to_repeat_it(run, data):
    run, _ = run
    told = run.settings
    assert Recipe.from_dict(told["recipe"]) == run.recipe == tiny_recipe(specialization="paper", diagnose_every=3)
    assert told["data"]["given"] == str(data)
    assert (told["kind"], told["seed"], told["steps"], told["step"], told["skipped"]) == ("training", 0, 4, 4, 0)
    assert {"torch", "timm", "lightning-fabric", "lightly"} <= set(told["versions"])
    assert told["hardware"]["device"] == "cpu"
    assert told["images_per_second"] > 0
    assert 0 <= told["data_wait_share"] <= 1
    assert "specialized (paper), seed 0" in (run.path / "README.md").read_text(encoding="utf-8")


def test_metrics_have_a_row_for_every_so_many_steps(run):
    run, told = run
    assert list(run.metrics["step"]) == [1, 2, 4]
    assert list(run.metrics.columns) == [
        "step",
        "epoch",
        "loss",
        "lr",
        "weight_decay",
        "grad_norm",
        "images_per_second",
    ]
    assert run.metrics["epoch"].iloc[-1] == pytest.approx(4 * 8 / run.settings["data"]["count"])
    losses = [numbers["loss"] for _, _, numbers in told]
    assert run.metrics["loss"].tolist() == [losses[0], losses[1], (losses[2] + losses[3]) / 2]
    assert [(done, steps) for done, steps, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][2]["eta_seconds"] == 0


def test_diagnostics_look_at_a_fixed_batch(run):
    run, _ = run
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


def test_the_model_of_a_run_is_made_again_by_name(run):
    run, _ = run
    model = run.model()
    assert not model.training
    assert plan_of(model) is not None
    assert model.num_classes == 3
    by_timm = timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_timm(x), model(x))


def test_a_finished_run_is_returned_as_it_is(run, data):
    run, _ = run
    before = (run.path / "run.json").read_bytes()
    again = train(run.recipe, data, run.path, progress=lambda *now: pytest.fail("it trains again"))
    assert again.settings == run.settings
    assert (run.path / "run.json").read_bytes() == before
    check_manifest(run.path)


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


# -- fairness


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


def test_random_states_of_the_caller_go_on_as_if_nothing_was_trained(data, tmp_path):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    train(tiny_recipe(steps=2), data, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]


def test_accumulated_parts_are_one_batch(data, tmp_path):
    whole = train(tiny_recipe(clip_grad=0.5), data, tmp_path / "whole")
    parts = train(tiny_recipe(clip_grad=0.5, accumulate=4), data, tmp_path / "parts")
    left, right = weights_of(whole), weights_of(parts)
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    np.testing.assert_allclose(whole.metrics["grad_norm"], parts.metrics["grad_norm"], rtol=1e-4)


def test_bfloat16_comes_near(data, tmp_path):
    full = train(tiny_recipe(steps=1), data, tmp_path / "full")
    half = train(tiny_recipe(steps=1, precision="bf16-mixed"), data, tmp_path / "half")
    assert half.metrics["loss"][0] != full.metrics["loss"][0]
    assert half.metrics["loss"][0] == pytest.approx(full.metrics["loss"][0], rel=0.02)
    assert {tensor.dtype for tensor in weights_of(half).values()} == {torch.float32}


# -- optimizer and schedules


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    recipe = tiny_recipe(steps=None, epochs=1, lr=1.0, lr_end=0.1, warmup=0.2)
    rates = [learning_rate(recipe, step, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    falling = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(40) / 39)) / 2
    assert rates[10:] == pytest.approx(falling.tolist())


def test_schedules_are_written_down(data, tmp_path):
    recipe = tiny_recipe(steps=3, warmup=0, weight_decay=0.1, weight_decay_end=0.5, log_every=1)
    table = train(recipe, data, tmp_path / "run").metrics
    assert table["weight_decay"].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert table["lr"].tolist() == pytest.approx([1e-3, (1e-3 + 1e-6) / 2, 1e-6])


@pytest.mark.parametrize("specialization", [None, "everything"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_groups_of_parameters(specialization, layer_decay):
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            options = {**OPTIONS, "init_values": 1e-5}
            self.backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **options)
            if specialization:
                tokenlens.specialize(self.backbone, specialization)
            self.projection = nn.Linear(3, 4)
            self.teacher = nn.Linear(3, 3).requires_grad_(False)

    objective = WithHead()
    found = {}
    for group in parameter_groups(objective, layer_decay):
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["lr_scale"], group["decay_scale"]
    for name, parameter in objective.named_parameters():
        if name.startswith("teacher"):
            assert id(parameter) not in found
            continue
        lr_scale, decay_scale = found.pop(id(parameter))
        assert decay_scale == (parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))), name
        # the stem, two blocks, the final norm with the last block as timm has it, and the heads
        depth = {"blocks.0": 3, "blocks.1": 2, "norm": 1, "head": 0}
        inside = name.removeprefix("backbone.")
        below = next((steps for start, steps in depth.items() if inside.startswith(start)), 4)
        if layer_decay is None or name.startswith("projection"):
            assert lr_scale == 1
        elif inside.startswith(("blocks", "patch_embed")):
            assert lr_scale in (0.5**below, 0.5 ** (below - 1)), name
    assert not found


def test_an_unknown_optimizer_gets_the_nearest(data, tmp_path):
    with pytest.raises(LookupError, match="Did you mean adamw"):
        train(tiny_recipe(optimizer="adamww"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["lamb", "sgd"])
def test_other_optimizers_of_timm(data, tmp_path, optimizer):
    run = train(tiny_recipe(optimizer=optimizer, steps=2), data, tmp_path / "run")
    assert run.finished


# -- weights to start from


def test_a_checkpoint_is_where_the_backbone_starts(data, tmp_path):
    torch.manual_seed(3)
    start = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, **OPTIONS)
    file = tmp_path / "start.safetensors"
    save_file(start.state_dict(), file)
    run = train(tiny_recipe(lr=1e-12, lr_end=0, steps=1), data, tmp_path / "run", specialize="norms", checkpoint=file)
    weights = weights_of(run)
    for name, tensor in start.state_dict().items():
        if name.startswith("head"):  # of seven other classes
            assert weights[name].shape[0] == 3
        elif "norm" in name:
            module, kind = name.rsplit(".", 1)
            assert torch.allclose(weights[f"{module}.cls.{kind}"], tensor, atol=1e-6)
        else:
            assert torch.allclose(weights[name], tensor, atol=1e-6)
    assert run.settings["start"]["source"] == str(file)
    with pytest.raises(ValueError, match="another configuration: start is"):
        train(tiny_recipe(lr=1e-12, lr_end=0, steps=1), data, tmp_path / "run", specialize="norms")


def test_weights_that_do_not_fit_are_refused(data, tmp_path):
    file = tmp_path / "start.safetensors"
    save_file({"blocks.0.norm1.weight": torch.ones(5)}, file)
    with pytest.raises(ValueError, match=r"does not fit.*missing.*of another shape"):
        train(tiny_recipe(), data, tmp_path / "run", checkpoint=file)
    assert not (tmp_path / "run").exists()
