"""A run folder belongs to one configuration and to one training at a time."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from tests.support.command_line import finished, process
from tests.support.tiny_training import assert_same_weights, tiny_recipe, train, write_colours
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.run_writer import open_run_writer
from tokenlens.training.trained_run import TrainedRun


def test_another_configuration_in_the_same_folder_is_refused(data, tmp_path, run):
    with pytest.raises(ValueError, match=r"another configuration: recipe\.lr is 0\.001 there and 0\.002 now"):
        train(tiny_recipe(lr=2e-3), data, run.path, specialize="paper")
    with pytest.raises(ValueError, match=r"recipe\.specialization is 'paper' there and None now"):
        train(tiny_recipe(), data, run.path)
    other = write_colours(tmp_path / "other", per_class=5)
    with pytest.raises(ValueError, match=r"data\.count is"):
        train(run.recipe, other, run.path)
    with pytest.raises(FileExistsError, match="--resume"):
        train(run.recipe, data, run.path, resume=False)
    assert TrainedRun.load(run.path).finished


def test_overwriting_starts_over(data, tmp_path):
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


LOCK = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
lock.write("process 7 on a machine")
lock.flush()
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_folder_belongs_to_one_training_at_a_time(tmp_path):
    """Seen from other processes: a POSIX lock does not exclude the process that holds it."""
    writer = open_run_writer(tmp_path / "run", {}, resume=True, overwrite=False)
    writer.update(state="running")
    lock = tmp_path / "run" / "running.lock"
    assert "BlockingIOError" in finished(process("-c", LOCK, lock, cwd=tmp_path))[2]
    writer.close()
    assert not lock.exists()
    with subprocess.Popen([sys.executable, "-c", LOCK, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=r"a training is already running in .*run \(process 7 on a machine\)"):
            open_run_writer(tmp_path / "run", {}, resume=True, overwrite=True)
        other.stdin.close()
    assert (tmp_path / "run" / "run.json").exists()


def test_a_half_written_row_is_written_again(data, tmp_path):
    recipe = tiny_recipe(steps=6, log_every=3)
    whole = train(recipe, data, tmp_path / "whole")
    train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    with (tmp_path / "run" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("3,0.9,0.5,0.1,0.1,0.1,12.0\n6,1.1,0.")
    done = train(recipe, data, tmp_path / "run")
    with (done.path / "metrics.csv").open(encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["step", "1", "3", "6"]
    assert_same_weights(done, whole)
