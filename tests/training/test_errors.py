"""What can go wrong in a training, and how it stops: what is told, what is kept, what is left alone."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import tokenlens
from tests.support.command_line import finished, process
from tests.support.tiny_training import colours, tiny_recipe
from tokenlens.specialization._plan import plan_of
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.fit import NonFiniteLossError, TrainedRun, TrainingInterrupted, changed
from tokenlens.training.objectives.supervised import Supervised
from tokenlens.training.run import open_run
from tokenlens.training.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished one."""
    return train(tiny_recipe(specialization="paper"), data, tmp_path_factory.mktemp("runs") / "run")


def assert_same(one: TrainedRun, other: TrainedRun) -> None:
    left, right = (load_file(each.path / "model.safetensors") for each in (one, other))
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_loss_that_is_not_a_number_stops_before_it_spoils_the_weights(data, tmp_path, monkeypatch):
    forward = Supervised.forward

    def broken(self, batch, progress):
        losses = forward(self, batch, progress)
        return {**losses, "loss": losses["loss"] * (float("nan") if progress.step == 2 else 1)}

    monkeypatch.setattr(Supervised, "forward", broken)
    recipe = tiny_recipe(checkpoint_minutes=1e-9)
    with pytest.raises(NonFiniteLossError, match=r"step 3 of 4.*loss=nan.*step_00000002\.ckpt, after 2 steps"):
        train(recipe, data, tmp_path / "run")
    failed = TrainedRun.load(tmp_path / "run")
    assert failed.state.startswith("failed: NaN or infinity in step 3 of 4")
    assert failed.step == 2
    monkeypatch.undo()
    assert train(recipe, data, tmp_path / "run").finished
    assert_same(TrainedRun.load(tmp_path / "run"), train(recipe, data, tmp_path / "whole"))


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path):
    folder = colours(tmp_path / "data")
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    run = train(tiny_recipe(steps=9), folder, tmp_path / "run", settings=["diagnose_every=9"])
    assert run.finished
    assert run.settings["skipped"] == 1
    [name] = set(run.skipped["name"])
    assert name.endswith("red/3.png")
    assert len(run.skipped) >= 2  # once an epoch
    assert "Images that could not be read: 1" in (run.path / "README.md").read_text(encoding="utf-8")


def test_another_configuration_in_the_same_folder_is_refused(data, tmp_path, run):
    with pytest.raises(ValueError, match=r"another configuration: recipe\.lr is 0\.001 there and 0\.002 now"):
        train(tiny_recipe(lr=2e-3), data, run.path, specialize="paper")
    with pytest.raises(ValueError, match=r"recipe\.specialization is 'paper' there and None now"):
        train(tiny_recipe(), data, run.path)
    other = colours(tmp_path / "other", per_class=5)
    with pytest.raises(ValueError, match=r"data\.count is"):
        train(run.recipe, other, run.path)
    with pytest.raises(FileExistsError, match="--resume"):
        train(run.recipe, data, run.path, resume=False)
    assert TrainedRun.load(run.path).finished


def test_overwriting_begins_anew(data, tmp_path):
    first = train(tiny_recipe(), data, tmp_path / "run")
    second = train(tiny_recipe(steps=1), data, tmp_path / "run", overwrite=True)
    assert second.settings["started"] >= first.settings["started"]
    assert (second.path / MANIFEST).exists()
    assert list(second.metrics["step"]) == [1]
    assert [file.name for file in (second.path / "checkpoints").iterdir()] == ["step_00000001.ckpt"]


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not the run folder of a training"):
            train(tiny_recipe(), data, folder, overwrite=overwrite)
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


def test_one_folder_belongs_to_one_training_at_a_time(data, tmp_path):
    folder = open_run(tmp_path / "run", {}, resume=True, overwrite=False)
    folder.say(state="running")
    code = (
        "import sys; from pathlib import Path; from tokenlens.training.run import open_run\n"
        "open_run(Path(sys.argv[1]), {}, resume=True, overwrite=True)"
    )
    exit_code, _, stderr = finished(process("-c", code, tmp_path / "run", cwd=tmp_path))
    assert exit_code == 1
    assert f"a training runs in {tmp_path / 'run'} already (process {os.getpid()} on" in stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["state"] == "running"
    folder.close()
    assert not (tmp_path / "run" / "running.lock").exists()


def test_labels_are_asked_for_where_the_objective_needs_them(tmp_path):
    flat = colours(tmp_path / "data") / "train" / "red"
    with pytest.raises(ValueError, match="supervised needs labels"):
        train(tiny_recipe(), flat, tmp_path / "run")


def test_bad_values_are_told_before_anything_is_written(data, tmp_path):
    for changes, kind, message in (
        ({"model": "vit_tiny_patch16_244"}, LookupError, "vit_tiny_patch16_224"),
        ({"model_options": {"deepth": 2}}, ValueError, "deepth"),
        ({"objective": "supervise"}, LookupError, "Did you mean supervised"),
        ({"objective_options": {"mixupp": 1}}, LookupError, "Did you mean mixup"),
        ({"specialization": "papper"}, LookupError, "Did you mean paper"),
        ({"precision": "16-mixed"}, ValueError, "CPU"),
        ({"batch_size": 6, "accumulate": 2}, ValueError, "batch_size=6"),
    ):
        with pytest.raises(kind, match=message):
            train(tiny_recipe(**changes), data, tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="available here"):
        train(tiny_recipe(), data, tmp_path / "run", device="gpu")


def test_settings_may_change_the_objective_and_its_options_at_once():
    one = changed(tiny_recipe(), ["objective=supervised", "objective_options.loss=ce"], "norms", 3)
    assert (one.objective_options, one.specialization, one.seed) == ({"loss": "ce"}, "norms", 3)
    spelled = changed(tiny_recipe(), specialize=tokenlens.Specialization(norm="all", registers="patch"))
    assert spelled.specialization == {"norm": "all", "registers": "patch"}
    assert json.dumps(spelled.to_dict())


# -- stopping


def test_time_that_is_over_stops_at_a_checkpoint_and_the_same_call_goes_on(data, tmp_path):
    recipe = tiny_recipe(diagnose_every=1, specialization="norms")
    stopped = train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    assert (stopped.state, stopped.step) == ("stopped", 1)
    assert not (stopped.path / MANIFEST).exists()
    assert plan_of(stopped.model()) is not None
    for _ in range(2):
        train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    done = train(recipe, data, tmp_path / "run")
    assert done.finished
    assert [one["from_step"] for one in done.settings["sessions"]] == [0, 1, 2, 3]
    whole = train(recipe, data, tmp_path / "whole")
    assert_same(done, whole)
    assert done.metrics.drop(columns="images_per_second").equals(whole.metrics.drop(columns="images_per_second"))
    assert done.diagnostics.equals(whole.diagnostics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_writes_a_checkpoint_first(data, tmp_path, number):
    def interrupt(done, steps, numbers):
        if done == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=r"step_00000003\.ckpt, after 3 steps, and the same command goes on"):
        train(tiny_recipe(), data, tmp_path / "run", progress=interrupt)
    assert signal.getsignal(number) is before
    stopped = TrainedRun.load(tmp_path / "run")
    assert (stopped.state, stopped.step) == ("stopped", 3)
    assert train(tiny_recipe(), data, tmp_path / "run").finished


def test_runs_that_are_not_there_or_newer_or_damaged(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        TrainedRun.load(tmp_path)
    for text, message in (
        ("{", "damaged"),
        ('{"schema_version": 99, "kind": "training"}', "newer tokenlens"),
        ('{"schema_version": 1, "kind": "analysis"}', "kind 'analysis'"),
    ):
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            TrainedRun.load(tmp_path)
