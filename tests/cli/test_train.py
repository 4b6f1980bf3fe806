"""``tokenlens train`` as a user runs it, and its run folder as a model for every other command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from tokenlens_cli import train as command
from typer.testing import CliRunner

from tests.support.command_line import finished, process, tokenlens
from tests.support.tiny_training import colours
from tokenlens.analysis.analysis import Analysis
from tokenlens.models.loading import load_model

SMALL = (
    "model_options.depth=2",
    "model_options.embed_dim=32",
    "model_options.num_heads=2",
    "image_size=32",
    "batch_size=8",
    "diagnose_every=2",
    "diagnose_images=4",
    "log_every=1",
)


def settings(*more: str, steps: int = 4) -> list[str]:
    return [word for setting in (*SMALL, f"steps={steps}", *more) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three classes of eight images."""
    return colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A finished run and what the command has said."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = tokenlens("train", "tiny_supervised", "--data", pictures, *settings(), "--seed", 3, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


@pytest.fixture(scope="module")
def specialized(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "specialized"
    result = tokenlens(
        "train", "tiny_supervised", "--data", pictures, *settings(), "--specialize", "paper", "--out", out
    )
    assert result.exit_code == 0, result.stderr
    return out


def test_it_says_what_came_out_and_where_it_is(trained):
    out, result = trained
    first, last = result.stdout.splitlines()
    assert first.startswith("tiny_supervised, seed 3: 4 of 4 steps in ")
    assert "images/s; loss " in first
    assert last == f"run: {out}"
    for name in ("run.json", "metrics.csv", "diagnostics.csv", "config.json", "model.safetensors", "MANIFEST.json"):
        assert (out / name).is_file(), name


def test_progress_is_on_stderr(trained):
    _, result = trained
    assert "training tiny_supervised: 4 steps" in result.stderr
    assert "step 1 of 4, loss " in result.stderr
    assert "left" in result.stderr
    assert "step" not in result.stdout.splitlines()[-1]


def test_the_figure_of_its_diagnostics_is_in_the_folder_and_in_the_manifest(trained, tmp_path, monkeypatch):
    out, _ = trained
    svg = (out / "figures" / "emergence.svg").read_text(encoding="utf-8")
    assert "tiny_supervised" in svg
    assert "figures/emergence.svg" in json.loads((out / "MANIFEST.json").read_text())["files"]
    monkeypatch.chdir(tmp_path)
    result = tokenlens("figure", out, "emergence", "--width", "single", "--format", "png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "emergence.png").is_file()
    wrong = tokenlens("figure", out, "depth_profile")
    assert wrong.exit_code == 1
    assert "the figure depth_profile is of an analysis, and this is a training" in wrong.stderr


def test_json_is_one_object(pictures, tmp_path):
    result = tokenlens(
        "train",
        "tiny_supervised",
        "--data",
        pictures,
        *settings("diagnose_every=0", steps=1),
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["state"] == "finished"
    assert (told["step"], told["steps"], told["seed"], told["skipped"]) == (1, 1, 0, 0)
    assert told["recipe"] == "tiny_supervised"
    assert told["model"] == "vit_tiny_patch16_224"
    assert told["specialization"] is None
    assert told["figure"] is None, "nothing was diagnosed"
    assert 0 < told["loss"] < 10
    assert 0 <= told["data_wait_share"] <= 1


def test_the_same_command_again_changes_nothing(trained, pictures):
    out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = tokenlens("train", "tiny_supervised", "--data", pictures, *settings(), "--seed", 3, "--out", out)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines()[-1] == f"run: {out}"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_it_stops_in_time_and_goes_on(pictures, tmp_path):
    out = tmp_path / "run"
    words = ["train", "tiny_supervised", "--data", pictures, *settings(steps=6), "--out", out]
    first = tokenlens(*words, "--max-minutes", 0)
    assert first.exit_code == 0, first.stderr
    assert "stopped at step 1 of 6; the same command goes on from there" in first.stderr
    source = load_model(str(out)).weights["source"]
    assert "step 1 of 6 (unfinished)" in source
    second = tokenlens(*words)
    assert second.exit_code == 0, second.stderr
    assert "training tiny_supervised: 6 steps, of which 1 are done" in second.stderr
    assert "6 of 6 steps" in second.stdout
    assert tokenlens(*words, "--no-resume").exit_code == 1


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["tiny_supervise"], 1, "no recipe is called 'tiny_supervise'. Did you mean tiny_supervised"),
        (["tiny_supervised", "--set", "epoch=3"], 1, "no setting is called 'epoch'. Did you mean epochs?"),
        (["tiny_supervised", "--set", "epochs=many"], 1, "epochs='many' is of type str; expected float | None"),
        (["tiny_supervised", "--set", "epochs"], 1, "a setting is name=value, got 'epochs'"),
        (["tiny_supervised", "--set", "objective_options.mixupp=0"], 1, "Did you mean mixup, cutmix?"),
        (["tiny_supervised", "--set", "batch_size=0"], 1, "batch_size=0: expected at least 1"),
        (["tiny_supervised", "--specialize", "papers"], 1, "Did you mean paper?"),
        (["tiny_supervised", "--device", "cuda:99"], 1, "available here"),
        (["tiny_supervised", "--max-minutes", "-1"], 2, "--max-minutes"),
        (["tiny_supervised", "--checkpoint", "nothing.safetensors"], 1, "nothing.safetensors does not exist"),
    ],
)
def test_wrong_input_gets_a_sentence_and_writes_nothing(pictures, tmp_path, monkeypatch, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("train", *words, "--data", pictures)
    assert result.exit_code == code
    assert " ".join(sentence.split()) in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("train", "tiny_supervised", "--data", "nowhere")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert not list(tmp_path.iterdir())


def test_another_configuration_in_the_same_folder_is_refused(trained, pictures):
    out, _ = trained
    result = tokenlens("train", "tiny_supervised", "--data", pictures, *settings("lr=0.5"), "--seed", 3, "--out", out)
    assert result.exit_code == 1
    assert "lr is 0.001 there and 0.5 now" in result.stderr


@pytest.mark.slow
def test_ctrl_c_is_a_clean_stop(pictures, tmp_path):
    words = ["train", "tiny_supervised", "--data", pictures, *settings(steps=100_000), "--out", "run"]
    running = process("-m", "tokenlens_cli", *words, cwd=tmp_path)
    until = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    exit_code, stdout, stderr = finished(running, 60)
    assert exit_code == 130, stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert "(unfinished)" in load_model(str(tmp_path / "run")).weights["source"]


def test_times_are_told_in_two_units():
    assert command.duration(0) == "0 s"
    assert command.duration(3599.7) == "1 h 0 min"


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with command.progress_of("[bold]a recipe") as report:
        report(1, 8, {"loss": 1.25, "images_per_second": 310.4, "eta_seconds": 75.0})
        report(2, 8, {"loss": 1.0, "images_per_second": 0.0, "eta_seconds": float("nan")})
    assert "steps" in capsys.readouterr().err or True  # what a bar draws depends on the terminal


# -- the run folder as a MODEL


def test_it_is_a_model_with_its_recipe_step_and_seed(trained):
    out, _ = trained
    loaded = load_model(str(out))
    assert not loaded.untrained
    assert loaded.name == str(out)
    assert loaded.image_size == (32, 32)
    assert loaded.module.num_classes == 3
    source = loaded.weights["source"]
    assert source.startswith(str(out / "model.safetensors"))
    assert source.endswith("trained by the recipe tiny_supervised, seed 3, step 4 of 4")
    assert load_model(f"local-dir:{out}").weights["source"] == source


def test_analyze_takes_it(trained, tmp_path):
    out, _ = trained
    few = ("--limit", 2, "--metrics", "cls_patch_cosine", "--no-report")
    result = tokenlens("analyze", out, *few, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.stderr
    assert "untrained" not in result.stdout
    analysis = Analysis.load(tmp_path / "a")
    assert analysis.model == str(out)
    assert "recipe tiny_supervised, seed 3, step 4 of 4" in analysis.provenance["weights"]["source"]


def test_probe_takes_it(trained, pictures, tmp_path):
    out = tmp_path / "probe"
    result = tokenlens("probe", trained[0], "--task", "knn", "--data", pictures, "--no-cache", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert 0 <= json.loads(result.stdout)["value"] <= 1


def test_compare_takes_two_of_them(trained, specialized, tmp_path):
    result = tokenlens(
        "compare",
        trained[0],
        specialized,
        "--limit",
        2,
        "--metrics",
        "cls_patch_cosine",
        "--out",
        tmp_path / "c",
        "--no-report",
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{specialized} against {trained[0]}: the same 2 images")


def test_a_specialized_one_is_itself(specialized):
    loaded = load_model(str(specialized))
    assert any(".cls." in name for name in loaded.module.state_dict())
    again = tokenlens("specialize", specialized, "--preset", "norms", "--dry-run")
    assert again.exit_code == 1
    assert "specialized already" in again.stderr


def test_a_standard_one_can_be_specialized(trained, tmp_path):
    result = tokenlens("specialize", trained[0], "--preset", "norms", "--out", tmp_path / "norms")
    assert result.exit_code == 0, result.stderr
    assert load_model(f"local-dir:{tmp_path / 'norms'}").image_size == (32, 32)
    assert any(".cls." in name for name in load_model(f"specialized:paper:{trained[0]}").module.state_dict())


def test_a_run_without_weights_says_when_they_come(trained, tmp_path):
    copy = tmp_path / "killed"
    shutil.copytree(trained[0], copy)
    for name in ("config.json", "model.safetensors", "MANIFEST.json"):
        os.unlink(copy / name)
    result = tokenlens("analyze", copy)
    assert result.exit_code == 1
    assert "has not written its weights yet (step 4 of 4)" in result.stderr
    assert "--max-minutes" in result.stderr


def test_a_folder_of_something_else_says_what_it_is_not(tmp_path, trained):
    result = tokenlens("analyze", tmp_path)
    assert result.exit_code == 1
    assert "no run of `tokenlens train`" in result.stderr
    assert f"local-dir:{tmp_path}" in result.stderr
    (tmp_path / "run.json").write_text("{")
    assert "no JSON" in tokenlens("analyze", tmp_path).stderr
    report = tokenlens("report", trained[0])
    assert report.exit_code == 1
    assert "`tokenlens figure" in report.stderr


# -- list


@pytest.mark.parametrize("kind", ["objectives", "recipes", "probes"])
def test_list_describes_everything(kind):
    told = json.loads(tokenlens("list", kind, "--json").stdout)
    assert told["count"] >= 3
    assert all(item["description"].rstrip(").").strip() for item in told["items"])


def test_list_tells_all_of_a_recipe_and_the_options_of_an_objective():
    [recipe] = json.loads(tokenlens("list", "recipes", "tiny_dino", "--json").stdout)["items"][:1]
    assert recipe["recipe"]["objective"] == "dino"
    assert "Hardware:" in recipe["about"]
    supervised = json.loads(tokenlens("list", "objectives", "supervised", "--json").stdout)["items"][0]
    assert supervised["labelled"] is True
    assert supervised["options"]["mixup"] == 0.8


def test_help_says_how_to_go_on():
    text = CliRunner().invoke(command_app(), ["train", "--help"], env={"COLUMNS": "200"}).stdout
    for word in ("--max-minutes", "--specialize", "--set", "--resume", "--checkpoint"):
        assert word in text


def command_app():
    from tokenlens_cli.app import app

    return app
