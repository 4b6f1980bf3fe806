"""``tokenlens probe`` as a user runs it."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.coloured_images import class_folders, mask_folders
from tests.support.command_line import MODEL, refused, tokenlens
from tokenlens.probes import ProbeResult

SMALL = ("--no-pretrained", "--img-size", "64")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("colours"))


def test_the_number_its_protocol_and_where_it_is(colours, tmp_path):
    result = tokenlens("probe", MODEL, "--task", "linear", "--data", colours, *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        rf"{MODEL} \(untrained: random weights\), linear: [\d.]+ % top-1 accuracy \[[\d.]+, [\d.]+\] "
        r"\(95 % over n = 12 test images\)",
        lines[0],
    )
    assert "  source: CLS token" in lines
    assert [line for line in lines if line.startswith("  learning rate: ")]
    assert [line for line in lines if line.startswith("  interval: 95 %, percentiles of 2000 draws")]
    assert [line for line in lines if re.fullmatch(r" +[\d.]+ % +\[[\d.]+, [\d.]+\]  n = 12  top-1 accuracy", line)]
    assert lines[-1] == f"run: {tmp_path / 'run'}"
    assert f"linear on features of {MODEL}" in result.stderr
    assert ProbeResult.load(tmp_path / "run").headline == lines[0]


def test_json_is_one_object_and_options_reach_the_probe(colours, tmp_path):
    arguments = ("--task", "knn", "--data", colours, *SMALL, "--out", tmp_path / "run", "--json")
    options = ("--source", "both", "--blocks", "2,-1", "--seed", 5, "--limit", 20, "--no-cache", "--batch-size", 4)
    result = tokenlens("probe", MODEL, *arguments, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["task"] == "knn"
    assert found["untrained"] is True
    assert found["ci_low"] <= found["value"] <= found["ci_high"]
    assert found["protocol"]["source"] == "CLS token ‖ mean of the patch tokens"
    assert found["protocol"]["frozen features"].startswith("resid_post of blocks 2, 5 through the final norm")
    assert found["protocol"]["seed"] == 5
    assert "a random 20 of 30" in found["protocol"]["training images"]
    assert found["table"][0]["quantity"] == "top-1 accuracy"
    assert found["run"] == str(tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_segmentation(tmp_path):
    data = mask_folders(tmp_path / "data", train=6, test=3)
    arguments = ("--task", "segmentation", "--data", data, "--img-size", "32", "--out", tmp_path / "run")
    result = tokenlens("probe", "raw_pixels", *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("raw_pixels, segmentation: ")
    assert "mean IoU at: the masks' own size, 56×40" in result.stdout
    assert "IoU, green" in result.stdout


def test_the_default_folder_and_overwriting(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("probe", "raw_pixels", "--task", "knn", "--data", colours)
    assert tokenlens(*arguments).exit_code == 0
    assert (tmp_path / "reports" / "raw_pixels_knn" / "MANIFEST.json").exists()
    refused(tokenlens(*arguments), "exists; use --overwrite")
    assert tokenlens(*arguments, "--overwrite").exit_code == 0


def test_skipped_images_are_told(tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "val" / "red" / "2.png").write_bytes(b"")
    result = tokenlens("probe", "raw_pixels", "--task", "knn", "--data", data, "--out", tmp_path / "run")
    assert "1 unreadable image was skipped: test red/2.png: empty file" in result.stderr
    assert "n = 11 test images" in result.stdout


def test_what_is_wrong_is_said(colours, tmp_path, photographs):
    def run(*arguments, task="knn", model=MODEL, data=colours):
        return tokenlens("probe", model, "--task", task, "--data", data, "--out", tmp_path / "run", *arguments)

    refused(run(*SMALL, task="segmentations"), "no probe is called 'segmentations'. Did you mean segmentation?")
    refused(run(*SMALL, model="test_vti"), "no model is called 'test_vti'", "test_vit")
    refused(run(*SMALL, data=tmp_path / "nowhere"), "there is no ", "nowhere")
    refused(run(*SMALL, "--source", "mean"), "expected source to be one of cls, patch_mean, both, got 'mean'")
    refused(run(*SMALL, "--blocks", "9"), "blocks of 0 to 5", "got [9]")
    refused(run(*SMALL, data=photographs), "label")
    refused(run("--source", "cls", model="raw_pixels"), "raw_pixels is no model, so it has no source")
    refused(run("--checkpoint", tmp_path / "none.pth"), "does not exist")
    refused(run(*SMALL, task="segmentation"), "expected", "masks")
    assert run("--limit", "1").exit_code == 2
    assert run("--blocks", "last").exit_code == 2
    assert not (tmp_path / "run").exists()
