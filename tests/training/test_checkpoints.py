"""A training that is killed, or finds the disk full, is resumed to the same weights, bit by bit."""

from __future__ import annotations

import json
import random
import resource
import signal

import pytest
import torch

from tests.support.command_line import process
from tests.support.tiny_training import OPTIONS, assert_same_weights, tiny_recipe, train
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.checkpoints import list_checkpoints, read_newest_checkpoint, write_checkpoint
from tokenlens.training.objectives.supervised import Supervised
from tokenlens.training.recipe import Recipe
from tokenlens.training.trained_run import TrainedRun

TRAIN = """
import json, sys
from tokenlens.training.recipe import Recipe
from tokenlens.training.train import train

recipe, data, out = sys.argv[1:]
progress = lambda done, *_: print(done, flush=True)
train(Recipe.from_dict(json.loads(recipe)), data, out, progress=progress, report=False)
"""


def long_recipe(**changes) -> Recipe:
    """A training with everything that has a state: warmup, momentum, an average of the weights, accumulation."""
    values = {
        "steps": 24,
        "specialization": "paper",
        "accumulate": 2,
        "clip_grad": 1.0,
        "weight_decay_end": 0.2,
        "objective_options": {"ema_decay": 0.9},
        "model_options": {**OPTIONS, "drop_path_rate": 0.2},
        "log_every": 3,
        "diagnose_every": 8,
        "checkpoint_minutes": 0.001,
    }
    return tiny_recipe(**values | changes)


def assert_same_run(one: TrainedRun, other: TrainedRun) -> None:
    assert_same_weights(one, other)
    ends = [read_newest_checkpoint(run.path / "checkpoints")[0] for run in (one, other)]
    for name, tensor in ends[0]["objective"].items():
        assert torch.equal(tensor, ends[1]["objective"][name]), name
    for name, moments in ends[0]["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, ends[1]["optimizer"]["state"][name][key]), (name, key)
    measured = "images_per_second"
    assert one.metrics.drop(columns=measured).equals(other.metrics.drop(columns=measured))
    assert one.diagnostics.equals(other.diagnostics)


@pytest.mark.slow
def test_a_killed_training_is_resumed_to_the_same_weights(data, tmp_path):
    recipe = long_recipe()
    whole = train(recipe, data, tmp_path / "whole")
    # As many threads as this process has: another number rounds differently.
    threads = str(torch.get_num_threads())
    arguments = (json.dumps(recipe.to_dict()), data, tmp_path / "killed")
    running = process("-c", TRAIN, *arguments, cwd=tmp_path, OMP_NUM_THREADS=threads)
    for _ in range(random.randint(6, 16)):
        assert running.stdout.readline()
    running.kill()
    running.communicate()
    killed = TrainedRun.load(tmp_path / "killed")
    assert killed.state == "running"
    assert not (killed.path / MANIFEST).exists()
    done = train(recipe, data, tmp_path / "killed")
    assert done.settings["sessions"][-1]["from_step"] > 0
    assert_same_run(done, whole)
    assert list(done.metrics["step"]) == [1, *range(3, 25, 3)]


@pytest.fixture
def limit_file_size():
    """Limit the size of files that this process writes: a larger write fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, previous)


def test_a_full_disk_leaves_the_last_good_checkpoint(data, tmp_path, limit_file_size):
    recipe = long_recipe(steps=4, diagnose_every=0, checkpoint_minutes=1e-9)
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    [good] = list_checkpoints(tmp_path / "run" / "checkpoints")
    before = good.read_bytes()
    limit_file_size(len(before) // 2)
    full = r"step_00000002\.ckpt could not be written; is the disk full\?; the last good checkpoint is .*, after 1 step"
    with pytest.raises(OSError, match=full):
        train(recipe, data, tmp_path / "run")
    limit_file_size(resource.RLIM_INFINITY)
    assert [file.name for file in good.parent.iterdir()] == [good.name]
    assert good.read_bytes() == before
    assert TrainedRun.load(tmp_path / "run").state.startswith("failed: ")
    assert_same_run(train(recipe, data, tmp_path / "run"), train(recipe, data, tmp_path / "whole"))


def test_a_damaged_checkpoint_is_skipped_and_reported(data, tmp_path):
    recipe = long_recipe(steps=4, diagnose_every=0)
    for _ in range(3):
        train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    newest, before = list_checkpoints(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train(recipe, data, tmp_path / "run")
    assert done.settings["sessions"][-1]["damaged_checkpoints"] == ["step_00000003.ckpt"]
    assert done.settings["sessions"][-1]["from_step"] == 2 == int(before.stem.removeprefix("step_"))
    assert_same_run(done, train(recipe, data, tmp_path / "whole"))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (1, 20, 3, 100_000_000):
        write_checkpoint(tmp_path, step, {"step": step})
    assert [file.name for file in list_checkpoints(tmp_path)] == ["step_100000000.ckpt", "step_00000020.ckpt"]
    assert read_newest_checkpoint(tmp_path) == ({"step": 100_000_000}, [])


def test_a_parameter_that_was_frozen_resumes_without_optimizer_state(data, tmp_path, monkeypatch):

    def frozen(self, progress):
        if progress.step < 3:
            self.backbone.head.weight.grad = None

    monkeypatch.setattr(Supervised, "after_backward", frozen)
    recipe = long_recipe(steps=4, diagnose_every=0)
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    assert_same_run(train(recipe, data, tmp_path / "run"), train(recipe, data, tmp_path / "whole"))
