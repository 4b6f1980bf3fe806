"""A training that is killed, or finds the disk full, goes on to the very weights it would have had."""

from __future__ import annotations

import csv
import json
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import finished, process
from tests.support.tiny_training import OPTIONS, colours, tiny_recipe
from tokenlens.training.checkpoints import checkpoints, read_newest, write_checkpoint
from tokenlens.training.recipe import Recipe
from tokenlens.training.run import TrainedRun
from tokenlens.training.train import train

TRAIN = """
import json, sys
from tokenlens.training.recipe import Recipe
from tokenlens.training.train import train

recipe, data, out = sys.argv[1:4]
if len(sys.argv) > 4:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
train(Recipe.from_dict(json.loads(recipe)), data, out, progress=lambda done, *_: print(done, flush=True))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


def long_recipe(**changes) -> Recipe:
    """With all that has a state: warmup, momentum of the optimizer, an average of the weights, accumulation."""
    values = {
        "steps": 60,
        "specialization": "paper",
        "accumulate": 2,
        "clip_grad": 1.0,
        "weight_decay_end": 0.2,
        "objective_options": {"ema_decay": 0.9},
        "model_options": {**OPTIONS, "drop_path_rate": 0.2},
        "log_every": 3,
        "diagnose_every": 20,
        "checkpoint_minutes": 0.001,
    }
    return tiny_recipe(**values | changes)


def start(recipe: Recipe, data: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    """With as many threads as this process has: another number of them rounds sums differently."""
    threads = str(torch.get_num_threads())
    return process("-c", TRAIN, json.dumps(recipe.to_dict()), data, out, *more, cwd=out.parent, OMP_NUM_THREADS=threads)


def assert_same(one: TrainedRun, other: TrainedRun) -> None:
    left, right = (load_file(run.path / "model.safetensors") for run in (one, other))
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)
    ends = [read_newest(run.path / "checkpoints")[0] for run in (one, other)]
    for name, tensor in ends[0]["objective"].items():
        assert torch.equal(tensor, ends[1]["objective"][name]), name
    for name, moments in ends[0]["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, ends[1]["optimizer"]["state"][name][key]), (name, key)
    measured = "images_per_second"
    assert one.metrics.drop(columns=measured).equals(other.metrics.drop(columns=measured))
    assert one.diagnostics.equals(other.diagnostics)


@pytest.mark.slow
def test_killed_at_a_random_step_it_goes_on_to_the_same_weights(data, tmp_path):
    recipe = long_recipe()
    whole = train(recipe, data, tmp_path / "whole")
    began_at = []
    for _ in range(2):
        running = start(recipe, data, tmp_path / "killed")
        last = random.randint(8, 25)
        steps = [int(running.stdout.readline()) for _ in range(last)]
        began_at.append(steps[0] - 1)
        running.kill()
        running.communicate()
        killed = TrainedRun.load(tmp_path / "killed")
        assert killed.state == "running"
        assert not (killed.path / "MANIFEST.json").exists()
    assert began_at[0] == 0 < began_at[1]
    done = train(recipe, data, tmp_path / "killed")
    assert done.settings["sessions"][-1]["from_step"] >= began_at[1]
    assert_same(done, whole)
    assert list(done.metrics["step"]) == [1, *range(3, 61, 3)]


def test_a_half_written_row_is_written_again(data, tmp_path):
    recipe = long_recipe(steps=6, diagnose_every=0)
    whole = train(recipe, data, tmp_path / "whole")
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    with (tmp_path / "run" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("3,0.9,0.5,0.1,0.1,0.1,12.0\n6,1.1,0.")
    done = train(recipe, data, tmp_path / "run")
    with (done.path / "metrics.csv").open(encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["step", "1", "3", "6"]
    assert_same(done, whole)


def test_a_full_disk_leaves_the_last_good_checkpoint(data, tmp_path):
    recipe = long_recipe(steps=12, diagnose_every=0, checkpoint_minutes=1e-9)
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    good = checkpoints(tmp_path / "run" / "checkpoints")[0]
    before = good.read_bytes()
    exit_code, _, stderr = finished(start(recipe, data, tmp_path / "run", len(before) // 2))
    assert exit_code == 1
    assert "step_00000002.ckpt could not be written; is the disk full?" in stderr
    assert f"the last good checkpoint is {good}, after 1 steps" in stderr
    assert [file.name for file in good.parent.iterdir()] == [good.name]
    assert good.read_bytes() == before
    failed = TrainedRun.load(tmp_path / "run")
    assert failed.state.startswith("failed: ")
    assert_same(train(recipe, data, tmp_path / "run"), train(recipe, data, tmp_path / "whole"))


def test_a_damaged_checkpoint_is_passed_over_and_told(data, tmp_path):
    recipe = long_recipe(steps=6, diagnose_every=0)
    for _ in range(3):
        train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    newest, before = checkpoints(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train(recipe, data, tmp_path / "run")
    assert done.settings["sessions"][-1]["damaged_checkpoints"] == ["step_00000003.ckpt"]
    assert done.settings["sessions"][-1]["from_step"] == 2 == int(before.stem.removeprefix("step_"))
    assert_same(done, train(recipe, data, tmp_path / "whole"))


def test_two_checkpoints_are_kept(tmp_path):
    for step in (1, 20, 3, 100_000_000):
        write_checkpoint(tmp_path, step, {"step": step})
    assert [file.name for file in checkpoints(tmp_path)] == ["step_100000000.ckpt", "step_00000020.ckpt"]
    assert read_newest(tmp_path) == ({"step": 100_000_000}, [])


def test_processes_that_read_images_change_nothing(data, tmp_path):
    recipe = long_recipe(steps=6, diagnose_every=0)
    assert_same(
        train(recipe, data, tmp_path / "workers", settings=["workers=1"]),
        train(recipe, data, tmp_path / "none"),
    )


def test_a_parameter_that_was_held_still_goes_on_like_one(data, tmp_path, monkeypatch):
    from tokenlens.training.objectives.supervised import Supervised

    def still(self, progress):
        if progress.step < 3:
            self.backbone.head.weight.grad = None

    monkeypatch.setattr(Supervised, "after_backward", still)
    recipe = long_recipe(steps=6, diagnose_every=0)
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    assert_same(train(recipe, data, tmp_path / "run"), train(recipe, data, tmp_path / "whole"))
