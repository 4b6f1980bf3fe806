"""``tokenlens train``, and its run folder as a model for every other command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenlens_cli import train as command

from tests.support.command_line import refused, tokenlens
from tests.support.tiny_training import write_colours
from tokenlens.analysis.analysis import Analysis
from tokenlens.models.loading import load_model
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.trained_run import TrainedRun

MODEL = ("model_options.depth=2", "model_options.embed_dim=32", "model_options.num_heads=2", "image_size=32")
SMALL = (*MODEL, "batch_size=8", "diagnose_every=2", "diagnose_images=4", "log_every=1")


def train(data: Path, out: Path, *words: object, settings: tuple[str, ...] = (), steps: int = 4) -> Any:
    """Run a tiny supervised training."""
    changes = [word for setting in (*SMALL, f"steps={steps}", *settings) for word in ("--set", setting)]
    return tokenlens("train", "tiny_supervised", "--data", data, *changes, "--out", out, *words)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three classes of eight images."""
    return write_colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A finished run and the command's output."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = train(pictures, out, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    return out, result


@pytest.fixture(scope="module")
def specialized(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "specialized"
    result = train(pictures, out, "--specialize", "paper", "--no-report")
    assert result.exit_code == 0, result.stderr
    return out


def test_it_prints_the_result_and_the_folder_and_progress_on_stderr(trained):
    out, result = trained
    first, last = result.stdout.splitlines()
    assert first.startswith("tiny_supervised, seed 3: 4 of 4 steps in ")
    assert "images/s; loss " in first
    assert last == f"run: {out}"
    for name in ("run.json", "metrics.csv", "diagnostics.csv", "config.json", "model.safetensors", "MANIFEST.json"):
        assert (out / name).is_file(), name
    assert "training tiny_supervised\n" in result.stderr
    assert re.search(r"  4 steps, [\d.e+]+ steps/s, loss [\d.]+, [\d.e+]+ images/s", result.stderr)


def test_report_and_figure_are_in_the_folder_and_the_manifest(trained, tmp_path, monkeypatch):
    out, _ = trained
    svg = (out / "figures" / "emergence.svg").read_text(encoding="utf-8")
    assert "tiny_supervised" in svg
    assert {"figures/emergence.svg", "report.html"} <= json.loads((out / "MANIFEST.json").read_text())["files"].keys()
    monkeypatch.chdir(tmp_path)
    result = tokenlens("figure", out, "emergence", "--width", "single", "--format", "png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "emergence.png").is_file()
    refused(tokenlens("figure", out, "depth_profile"), "needs a result of kind 'analysis', got 'training'")


def test_json_is_one_object(pictures, tmp_path):
    result = train(pictures, tmp_path / "run", "--json", settings=("diagnose_every=0",), steps=1)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["state"] == "finished"
    assert (found["step"], found["steps"], found["seed"], found["skipped"]) == (1, 1, 0, 0)
    assert found["recipe"] == "tiny_supervised"
    assert found["model"] == "vit_tiny_patch16_224"
    assert found["specialization"] is None
    assert found["figure"] is None, "nothing was diagnosed"
    assert 0 < found["loss"] < 10
    assert 0 <= found["data_wait_share"] <= 1


def test_the_same_command_again_changes_nothing(trained, pictures):
    out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = train(pictures, out, "--seed", 3)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines()[-1] == f"run: {out}"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    check_manifest(out)


def test_it_stops_in_time_and_is_resumed(pictures, tmp_path):
    out = tmp_path / "run"
    first = train(pictures, out, "--no-report", "--max-minutes", 0, steps=6)
    assert first.exit_code == 0, first.stderr
    assert "stopped at step 1 of 6. Run the same command again to resume" in first.stderr
    source = load_model(str(out)).weights["source"]
    assert "step 1 of 6 (unfinished)" in source
    second = train(pictures, out, "--no-report", steps=6)
    assert second.exit_code == 0, second.stderr
    assert "training tiny_supervised\n  1 of 6 steps were done before\n" in second.stderr
    assert "6 of 6 steps" in second.stdout
    assert train(pictures, out, "--no-resume", steps=6).exit_code == 1


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["tiny_supervise"], 1, "no recipe is called 'tiny_supervise'. Did you mean tiny_supervised"),
        (["tiny_supervised", "--set", "epoch=3"], 1, "no setting is called 'epoch'. Did you mean epochs?"),
        (["tiny_supervised", "--specialize", "papers"], 1, "Did you mean paper?"),
        (["tiny_supervised", "--device", "cuda:99"], 1, "available here"),
        (["tiny_supervised", "--max-minutes", "-1"], 2, "--max-minutes"),
        (["tiny_supervised", "--data", "nowhere"], 1, "nowhere"),
        (["tiny_supervised", "--checkpoint", "nothing.safetensors"], 1, "nothing.safetensors does not exist"),
    ],
)
def test_invalid_input_gets_a_sentence_and_writes_nothing(pictures, tmp_path, monkeypatch, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    result = tokenlens("train", "--data", pictures, *words)
    assert result.exit_code == code
    assert " ".join(sentence.split()) in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_another_configuration_in_the_same_folder_is_refused(trained, pictures):
    out, _ = trained
    refused(train(pictures, out, "--seed", 3, settings=("lr=0.5",)), "lr is 0.001 there and 0.5 now")


def test_ctrl_c_is_a_clean_stop(pictures, tmp_path, monkeypatch):
    @contextmanager
    def interrupt():
        yield lambda _, done, *__: os.kill(os.getpid(), signal.SIGINT) if done == 2 else None

    monkeypatch.setattr(command, "show_progress", interrupt)
    out = tmp_path / "run"
    result = train(pictures, out, "--no-report")
    assert result.exit_code == 130, result.stderr
    assert "after 3 steps. Run the same command again to resume" in result.stderr
    assert result.stdout == ""
    assert "(unfinished)" in load_model(str(out)).weights["source"]


def test_a_report_that_cannot_be_drawn_is_one_sentence(pictures, tmp_path, monkeypatch):
    def broken(self, folder):
        raise RuntimeError("no font")

    monkeypatch.setattr(TrainedRun, "_write_report", broken)
    result = train(pictures, tmp_path / "run", steps=1)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("the report could not be drawn (no font)") == 1
    assert "Traceback" not in result.stderr


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
    few = ("--limit", 2, "--metrics", "cls_patch_cosine", "--no-report")
    result = tokenlens("compare", trained[0], specialized, *few, "--out", tmp_path / "c")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{specialized} against {trained[0]}: the same 2 images")


def test_a_specialized_one_is_itself(specialized):
    loaded = load_model(str(specialized))
    assert any(".cls." in name for name in loaded.module.state_dict())
    refused(tokenlens("specialize", specialized, "--preset", "norms", "--dry-run"), "specialized already")


def test_a_standard_one_can_be_specialized(trained, tmp_path):
    result = tokenlens("specialize", trained[0], "--preset", "norms", "--out", tmp_path / "norms")
    assert result.exit_code == 0, result.stderr
    assert load_model(f"local-dir:{tmp_path / 'norms'}").image_size == (32, 32)
    assert any(".cls." in name for name in load_model(f"specialized:paper:{trained[0]}").module.state_dict())


def test_a_run_without_weights_says_when_they_are_written(trained, tmp_path):
    copy = tmp_path / "killed"
    shutil.copytree(trained[0], copy)
    for name in ("config.json", "model.safetensors", "MANIFEST.json"):
        os.unlink(copy / name)
    refused(tokenlens("analyze", copy), "has not written its weights yet (step 4 of 4)", "--max-minutes")


def test_a_folder_of_something_else_is_refused(tmp_path):
    refused(tokenlens("analyze", tmp_path), "run.json of a `tokenlens train` run", f"--checkpoint {tmp_path}")
    (tmp_path / "run.json").write_text("{")
    assert "run.json" in tokenlens("analyze", tmp_path).stderr


def test_the_report_can_be_drawn_again(trained):
    out, _ = trained
    (out / "report.html").unlink()
    result = tokenlens("report", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report: {out / 'report.html'}\n"
    check_manifest(out)


# -- list


def test_list_describes_recipes_and_options_in_full():
    [recipe] = json.loads(tokenlens("list", "recipes", "tiny_dino", "--json").stdout)["items"][:1]
    assert recipe["recipe"]["objective"] == "dino"
    assert "Hardware:" in recipe["about"]
    supervised = json.loads(tokenlens("list", "objectives", "supervised", "--json").stdout)["items"][0]
    assert supervised["labelled"] is True
    assert supervised["options"]["mixup"] == 0.8


def test_pixels_that_the_model_drops_are_said(pictures, tmp_path):
    few = ("image_size=35", "diagnose_every=0")
    result = train(pictures, tmp_path / "run", "--no-report", settings=few, steps=1)
    note = "4×4 patches of 8×8 pixels cover 32×32 of 35×35 pixels: 3 rows at the bottom are dropped"
    assert note in result.stderr
    assert note in TrainedRun.load(tmp_path / "run").settings["data"]["notes"][-1]
