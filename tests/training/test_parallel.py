"""Two processes train as one does with the same batch, for every objective, with DDP and FSDP2; errors appear once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command_line import finished, process
from tests.support.tiny_training import OPTIONS, read_weights, tiny_recipe, train
from tests.training.objectives.distill import trained_teacher
from tokenlens.training.objectives.base import objectives
from tokenlens.training.parallel import make_fabric
from tokenlens.training.recipe import Recipe
from tokenlens.training.trained_run import TrainedRun

TRAIN = """
import json, sys
from tokenlens.training.recipe import Recipe
from tokenlens.training.train import train

trainings, data = sys.argv[1:]
for out, recipe, minutes in json.loads(trainings):
    train(Recipe.from_dict(recipe), data, out, device="cpu", max_minutes=minutes, report=False)
"""


def train_in_two(trainings: list[tuple[Path, Recipe, float]], data: Path) -> None:
    """Train in two processes, started as torchrun does: one recipe after the other, each for at most some minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
    }
    wanted = json.dumps([(str(out), recipe.to_dict(), minutes) for out, recipe, minutes in trainings])
    arguments = ("-c", TRAIN, wanted, data)
    running = [process(*arguments, cwd=data, RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in (0, 1)]
    for one in running:
        exit_code, _, stderr = finished(one)
        assert exit_code == 0, stderr


def assert_close(one: TrainedRun, other: TrainedRun) -> None:
    left, right = read_weights(one), read_weights(other)
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-5, msg=name)
    for table, column, rtol, atol in (("metrics", "loss", 1e-5, 1e-6), ("diagnostics", "value", 1e-3, 1e-4)):
        found, expected = (torch.tensor(getattr(run, table)[column]) for run in (one, other))
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


HEADS = {"local_crops": 2, "local_size": 16, "prototypes": 32, "hidden": 32, "bottleneck": 16, "blur": (0.1, 0.5)}


def recipe_for(objective: str = "supervised", **changes: Any) -> Recipe:
    values = {
        "objective": objective,
        "objective_options": {"ema_decay": 0.9} if objective == "supervised" else HEADS,
        "model_options": {**OPTIONS, "dynamic_img_size": True, "init_values": 0.1},
        "specialization": "paper",
        "clip_grad": 1.0,
        "diagnose_every": 4,
        "diagnose_images": 16,
    }
    return tiny_recipe(**values | changes)


def recipes(folder: Path) -> dict[str, Recipe]:
    """Recipes for two processes; at least one for each objective."""
    teacher = {**trained_teacher(folder / "teacher"), "views": "flip", "cache": str(folder / "cache")}
    return {
        "supervised in two parts": recipe_for(accumulate=2),
        "supervised in bfloat16 with fsdp2": recipe_for(strategy="fsdp2", precision="bf16-mixed"),
        "dino": recipe_for("dino"),
        "dinov2": recipe_for("dinov2", objective_options={**HEADS, "koleo": 1.0}),
        "distill with a cache": recipe_for("distill", objective_options=teacher),
    }


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Return a folder of runs that two processes have trained, by name; ``sharded`` was stopped after each step."""
    folder = tmp_path_factory.mktemp("two")
    trainings = [(folder / name, recipe, 60.0) for name, recipe in recipes(folder).items()]
    trainings += [(folder / "sharded", recipe_for(strategy="fsdp2"), 0.0)] * 2
    train_in_two(trainings, data)
    return folder


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    return train(recipe_for(), data, tmp_path_factory.mktemp("runs") / "alone")


def test_every_objective_is_trained_by_two(tmp_path):
    assert {recipe.objective for recipe in recipes(tmp_path).values()} == set(objectives.names())


@pytest.mark.slow
def test_two_processes_with_two_parts_each_train_as_one(two, alone):
    together = TrainedRun.load(two / "supervised in two parts")
    assert (together.finished, together.settings["processes"]) == (True, 2)
    assert_close(together, alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino", "dinov2", "distill with a cache"])
def test_two_processes_train_an_objective_as_one_does(data, tmp_path, two, name):
    together = TrainedRun.load(two / name)
    assert (together.finished, together.settings["processes"]) == (True, 2)
    one = train(recipes(tmp_path)[name], data, tmp_path / "alone")
    assert_close(together, one)
    if "cache" in name:
        # Each of the two has written the features of its own images; a third training finds them all.
        assert_close(train(together.recipe, data, tmp_path / "again"), one)


@pytest.mark.slow
def test_fsdp2_trains_as_one_process_does_and_one_process_resumes_it(data, two, alone):
    stopped = TrainedRun.load(two / "sharded")
    assert (stopped.state, stopped.step) == ("stopped", 2)
    assert stopped.model().num_classes == 3
    done = train(recipe_for(strategy="fsdp2"), data, stopped.path)
    assert done.finished
    assert [one["processes"] for one in done.settings["sessions"]] == [2, 2, 1]
    assert [one["from_step"] for one in done.settings["sessions"]] == [0, 1, 2]
    assert "processes 1, before 2" in done.settings["sessions"][-1]["rounds_differently"]
    assert "rounds_differently" not in done.settings["sessions"][0]
    assert_close(done, alone)


@pytest.mark.slow
def test_fsdp2_in_bfloat16(data, tmp_path, two):
    together = TrainedRun.load(two / "supervised in bfloat16 with fsdp2")
    whole = train(together.recipe, data, tmp_path / "whole")  # a recipe for many processes, in one
    assert together.metrics["loss"].tolist() == pytest.approx(whole.metrics["loss"].tolist(), rel=0.02)


# -- as a user starts them

SETTINGS = (
    "model_options.depth=2",
    "model_options.embed_dim=32",
    "model_options.num_heads=2",
    "image_size=32",
    "batch_size=8",
    "diagnose_every=0",
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(data: Path, *more: str, steps: int = 4) -> list[str]:
    settings = [word for setting in (*SETTINGS, f"steps={steps}", *more) for word in ("--set", setting)]
    words = ["-m", "tokenlens_cli", "train", "tiny_supervised", "--data", str(data), "--device", "cpu", "--no-report"]
    return [*words, *settings]


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    """A training whose processes Fabric started: the folder it was in, exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("started")
    return folder, *finished(process(*command(data), "--devices", 2, "--out", "run", cwd=folder))


@pytest.mark.slow
def test_fabric_starts_the_processes_and_the_result_is_printed_once(started):
    folder, exit_code, stdout, stderr = started
    assert exit_code == 0, stderr
    assert stdout.splitlines()[-1] == "run: run"
    assert stdout.count("4 of 4 steps") == stdout.count("run: run") == stderr.count("training tiny_supervised") == 1
    assert stderr.count("\n  4 steps, ") == 1
    run = TrainedRun.load(folder / "run")
    assert (run.finished, run.settings["processes"]) == (True, 2)


@pytest.mark.slow
def test_an_error_of_the_first_process_is_printed_once(data, started):
    """Only the first process sees that the folder holds another configuration."""
    folder, *_ = started
    words = [*command(data, "lr=0.5"), "--out", "run", "--devices", "2"]
    exit_code, stdout, stderr = finished(process(*words, cwd=folder))
    assert (exit_code, stdout) == (1, "")
    assert stderr.count("error: ") == 1, stderr
    assert "lr is 0.001 there and 0.5 now" in stderr


@pytest.mark.slow
def test_an_error_that_all_of_torchruns_processes_see_is_printed_once(data, tmp_path):
    exit_code, stdout, stderr = finished(process(*TORCHRUN, *command(data, "epoch=3"), cwd=tmp_path))
    assert (exit_code, stdout) == (1, "")
    assert stderr.count("error: ") == stderr.count("Did you mean epochs?") == 1, stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_is_one_clean_stop_of_all(data, tmp_path):
    words = command(data, "workers=1", steps=100_000)
    running = process(*words, "--devices", 2, "--out", "run", cwd=tmp_path, own_group=True)
    until = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    exit_code, stdout, stderr = finished(running, 60)
    assert (exit_code, stdout) == (130, ""), stderr
    assert stderr.count("Run the same command again to resume") == 1
    assert "Traceback" not in stderr
    stopped = TrainedRun.load(tmp_path / "run")
    assert stopped.state == "stopped"
    stopped.model()


def test_without_a_script_to_run_again_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match=r"devices=2 runs the same script again.*there is no script"):
        make_fabric(tiny_recipe(), "cpu", devices=2)
