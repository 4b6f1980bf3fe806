"""A training that is stopped writes a checkpoint, and the same call resumes it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.tiny_training import assert_same_weights, tiny_recipe, train
from tokenlens.specialization import get_plan
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.stopping import TrainingInterrupted
from tokenlens.training.trained_run import TrainedRun


def test_a_training_stopped_by_time_is_resumed_to_the_same_weights(data, tmp_path):
    recipe = tiny_recipe(diagnose_every=1, specialization="norms")
    stopped = train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    assert (stopped.state, stopped.step) == ("stopped", 1)
    assert not (stopped.path / MANIFEST).exists()
    assert get_plan(stopped.model()) is not None
    for _ in range(2):
        train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    done = train(recipe, data, tmp_path / "run")
    assert done.finished
    assert [one["from_step"] for one in done.settings["sessions"]] == [0, 1, 2, 3]
    whole = train(recipe, data, tmp_path / "whole")
    assert_same_weights(done, whole)
    assert done.metrics.drop(columns="images_per_second").equals(whole.metrics.drop(columns="images_per_second"))
    assert done.diagnostics.equals(whole.diagnostics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_writes_a_checkpoint_first(data, tmp_path, number):
    def interrupt(done, steps, numbers):
        if done == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(
        TrainingInterrupted, match=r"step_00000003\.ckpt, after 3 steps\. Run the same command again to resume"
    ):
        train(tiny_recipe(), data, tmp_path / "run", progress=interrupt)
    assert signal.getsignal(number) is before
    stopped = TrainedRun.load(tmp_path / "run")
    assert (stopped.state, stopped.step) == ("stopped", 3)
    assert train(tiny_recipe(), data, tmp_path / "run").finished
