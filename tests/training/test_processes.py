"""Two processes train as one does with the same batch, by every objective; FSDP2 does, too, and one process reads its
checkpoint. However the processes are started, the user is told everything once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import finished, process
from tests.support.tiny_training import OPTIONS, colours, tiny_recipe
from tests.training.objectives.distill import trained_teacher
from tokenlens.training.objectives.base import objectives
from tokenlens.training.parallel import fabric_of
from tokenlens.training.recipe import Recipe
from tokenlens.training.run import TrainedRun
from tokenlens.training.train import train

TRAIN = """
import json, sys
from tokenlens.training.recipe import Recipe
from tokenlens.training.train import train

recipes, data, minutes = sys.argv[1:]
for out, recipe in json.loads(recipes).items():
    train(Recipe.from_dict(recipe), data, out, device="cpu", max_minutes=float(minutes))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


def train_in_two(recipe: Recipe, data: Path, out: Path, max_minutes: float = 60) -> TrainedRun:
    """A training by two processes."""
    train_all_in_two({out: recipe}, data, max_minutes)
    return TrainedRun.load(out)


def train_all_in_two(recipes: Mapping[Path, Recipe], data: Path, max_minutes: float = 60) -> None:
    """Trainings one after the other, each by the same two processes, as torchrun starts them, without its own."""
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
    wanted = json.dumps({str(out): recipe.to_dict() for out, recipe in recipes.items()})
    arguments = ("-c", TRAIN, wanted, data, max_minutes)
    running = [process(*arguments, cwd=data, RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in (0, 1)]
    for one in running:
        exit_code, _, stderr = finished(one)
        assert exit_code == 0, stderr


def assert_close(one: TrainedRun, other: TrainedRun) -> None:
    left, right = (load_file(run.path / "model.safetensors") for run in (one, other))
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-5, msg=name)
    torch.testing.assert_close(
        torch.tensor(one.metrics["loss"]), torch.tensor(other.metrics["loss"]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        torch.tensor(one.diagnostics["value"]), torch.tensor(other.diagnostics["value"]), rtol=1e-3, atol=1e-4
    )


def recipe_of(**changes) -> Recipe:
    values = {
        "specialization": "paper",
        "clip_grad": 1.0,
        "diagnose_every": 4,
        "diagnose_images": 16,
        "objective_options": {"ema_decay": 0.9},
    }
    return tiny_recipe(**values | changes)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    return train(recipe_of(), data, tmp_path_factory.mktemp("runs") / "alone")


@pytest.mark.slow
def test_two_processes_with_two_parts_each_train_as_one(data, tmp_path, alone):
    together = train_in_two(recipe_of(accumulate=2), data, tmp_path / "together")
    assert together.finished
    assert together.settings["processes"] == 2
    assert_close(together, alone)


@pytest.mark.slow
def test_fsdp2_trains_as_one_and_one_process_goes_on_from_its_checkpoint(data, tmp_path, alone):
    recipe = recipe_of(strategy="fsdp2")
    stopped = train_in_two(recipe, data, tmp_path / "sharded", max_minutes=1e-9)
    assert (stopped.state, stopped.step) == ("stopped", 1)
    assert stopped.model().num_classes == 3
    two_steps = train_in_two(recipe, data, tmp_path / "sharded", max_minutes=1e-9)
    assert two_steps.step == 2
    done = train(recipe, data, tmp_path / "sharded")
    assert done.finished
    assert [one["processes"] for one in done.settings["sessions"]] == [2, 2, 1]
    assert "processes 1, before 2" in done.settings["sessions"][-1]["rounds_differently"]
    assert "rounds_differently" not in done.settings["sessions"][0]
    assert_close(done, alone)


@pytest.mark.slow
def test_fsdp2_in_bfloat16(data, tmp_path):
    recipe = recipe_of(strategy="fsdp2", precision="bf16-mixed")
    together = train_in_two(recipe, data, tmp_path / "sharded")
    whole = train(recipe, data, tmp_path / "whole")
    assert together.metrics["loss"].tolist() == pytest.approx(whole.metrics["loss"].tolist(), rel=0.02)


def test_what_is_for_many_processes_runs_in_one(data, tmp_path):
    assert train(tiny_recipe(strategy="fsdp2", steps=1), data, tmp_path / "run").finished


# -- every objective

HEADS = {"local_crops": 2, "local_size": 16, "prototypes": 32, "hidden": 32, "bottleneck": 16, "blur": (0.1, 0.5)}
MODEL = {**OPTIONS, "dynamic_img_size": True, "init_values": 0.1}


def recipes_of_objectives(folder: Path) -> dict[str, Recipe]:
    """One for each objective, and one more for each way in which it looks at other images or writes for them."""
    teacher = trained_teacher(folder / "teacher")
    cached = {**teacher, "views": "flip", "cache": str(folder / "cache")}
    changes = {
        "supervised": ("supervised", {"ema_decay": 0.9}),
        "dino": ("dino", HEADS),
        "dinov2": ("dinov2", {**HEADS, "koleo": 1.0}),
        "dinov2 with a centre": ("dinov2", {**HEADS, "centring": "centre", "tie_heads": True}),
        "distill": ("distill", teacher),
        "distill with a cache": ("distill", cached),
    }
    return {
        name: recipe_of(objective=objective, objective_options=options, model_options=MODEL, image_size=32)
        for name, (objective, options) in changes.items()
    }


@pytest.fixture(scope="module")
def of_two(data, tmp_path_factory):
    """What two processes have trained, by name."""
    folder = tmp_path_factory.mktemp("two")
    recipes = recipes_of_objectives(folder)
    train_all_in_two({folder / name: recipe for name, recipe in recipes.items()}, data)
    return {name: TrainedRun.load(folder / name) for name in recipes}


CASES = ("supervised", "dino", "dinov2", "dinov2 with a centre", "distill", "distill with a cache")


def test_every_objective_is_trained_by_two():
    assert set(objectives.names()) == {name.split(" ")[0] for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_objective_is_trained_by_two_processes_as_by_one(data, tmp_path, of_two, name):
    together = of_two[name]
    assert (together.finished, together.settings["processes"]) == (True, 2)
    alone = train(recipes_of_objectives(tmp_path)[name], data, tmp_path / "alone")
    assert_close(together, alone)
    if "cache" in name:
        # Each of the two has written the features of its own images; a third training finds what they left.
        again = train(together.recipe, data, tmp_path / "again")
        assert_close(again, alone)


# -- as a user starts them

SETTINGS = (
    "model_options.depth=2",
    "model_options.embed_dim=32",
    "model_options.num_heads=2",
    "image_size=32",
    "batch_size=8",
    "diagnose_images=4",
    "diagnose_every=2",
    "workers=1",
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(data: Path, *more: str, steps: int = 4) -> list[str]:
    wanted = [word for setting in (*SETTINGS, f"steps={steps}", *more) for word in ("--set", setting)]
    return ["-m", "tokenlens_cli", "train", "tiny_supervised", "--data", str(data), "--device", "cpu", *wanted]


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    """A training whose processes Fabric has started: the folder it was in, exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("started")
    return folder, *finished(process(*command(data), "--devices", 2, "--out", "run", cwd=folder))


@pytest.mark.slow
def test_fabric_starts_the_processes_and_the_result_is_told_once(started):
    folder, exit_code, stdout, stderr = started
    assert exit_code == 0, stderr
    assert stdout.splitlines()[-1] == "run: run"
    assert stdout.count("4 of 4 steps") == stdout.count("run: run") == stderr.count("step 1 of 4") == 1
    run = TrainedRun.load(folder / "run")
    assert (run.finished, run.settings["processes"]) == (True, 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fabric", "torchrun"])
def test_an_error_of_the_first_process_is_told_once(data, started, way):
    """Another configuration in the folder is seen by the one that writes; the other only sees that it is gone."""
    folder, *_ = started
    words = [*command(data, "lr=0.5"), "--out", "run"]
    words = [*words, "--devices", "2"] if way == "fabric" else [*TORCHRUN, *words]
    exit_code, stdout, stderr = finished(process(*words, cwd=folder))
    assert (exit_code, stdout) == (1, "")
    assert stderr.count("error: ") == 1, stderr
    assert "lr is 0.001 there and 0.5 now" in stderr


@pytest.mark.slow
def test_an_error_that_all_of_torchruns_processes_see_is_told_once(data, tmp_path):
    exit_code, stdout, stderr = finished(process(*TORCHRUN, *command(data, "epoch=3"), cwd=tmp_path))
    assert (exit_code, stdout) == (1, "")
    assert stderr.count("error: ") == stderr.count("Did you mean epochs?") == 1, stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_is_one_clean_stop_of_all(data, tmp_path):
    running = process(*command(data, steps=100_000), "--devices", 2, "--out", "run", cwd=tmp_path, own_group=True)
    until = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    exit_code, stdout, stderr = finished(running, 60)
    assert (exit_code, stdout) == (130, ""), stderr
    assert stderr.count("the same command goes on from there") == 1
    assert "Traceback" not in stderr
    stopped = TrainedRun.load(tmp_path / "run")
    assert stopped.state == "stopped"
    assert (stopped.path / "figures" / "emergence.svg").is_file()
    stopped.model()


def test_without_a_script_to_run_again_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match=r"devices=2 runs the same script again.*no script here"):
        fabric_of(tiny_recipe(), "cpu", devices=2)
