"""``tokenlens compare`` as a user runs it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.command_line import MODEL, refused, tiny_analyze, tokenlens
from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.comparison import Comparison

QUICK = ("--no-report", "--metrics", "update_ratio,cka")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, the same model with other random weights, and the first model on other images."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "photographs").mkdir()
    from PIL import Image
    from sklearn.datasets import load_sample_images

    for i, name in enumerate("abcdef"):
        picture = Image.fromarray(load_sample_images().images[i % 2])
        picture.crop((60 * i, 30 * i, 60 * i + 200, 30 * i + 200)).save(folder / "photographs" / f"{name}.png")
    given = ("--images", folder / "photographs", "--limit", 6)
    assert tiny_analyze(folder / "one", *QUICK, *given).exit_code == 0
    assert tiny_analyze(folder / "two", *QUICK, *given, "--seed", 1).exit_code == 0
    assert tiny_analyze(folder / "elsewhere", *QUICK).exit_code == 0
    return folder


def test_saved_runs_need_neither_models_nor_images(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("tokenlens.comparison.compare"), "analyze", None)
    result = tokenlens("compare", runs / "one", runs / "two", "--no-report", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    label, baseline = (f"{MODEL} (untrained) · {name}" for name in ("two", "one"))
    assert lines[0].startswith(f"{label} against {baseline}: the same 6 images, paired by image; ")
    assert lines[0].endswith(" numbers differ significantly (false discovery rate 5 %)")
    assert lines[1].startswith("  update_ratio ")
    assert ", mean over blocks: " in lines[1]
    assert [line for line in lines if line.startswith(f"cls features of {label} and {baseline}: CKA ")]
    assert lines[-1] == f"run: {tmp_path / 'out'}"
    assert Comparison.load(tmp_path / "out").labels == [baseline, label]


def test_a_run_and_itself(runs, tmp_path):
    result = tokenlens("compare", runs / "one", runs / "one", "--no-report", "--out", tmp_path / "out")
    assert "; none of " in result.stdout.splitlines()[0]
    assert "mean over blocks" not in result.stdout


def test_other_images_are_unpaired(runs, tmp_path):
    result = tokenlens("compare", runs / "one", runs / "elsewhere", "--no-report", "--out", tmp_path / "out")
    assert ": 0 of 4 and 6 images in common: compared unpaired; " in result.stdout.splitlines()[0]
    assert "similarity of features: " in result.stdout
    refused(
        tokenlens("compare", runs / "one", runs / "elsewhere", "--pair", "--out", tmp_path / "paired"),
        "cannot be paired",
        "0 of 4 and 6 images in common",
    )
    assert not (tmp_path / "paired").exists()


def test_json_and_labels(runs, tmp_path):
    result = tokenlens(
        "compare",
        runs / "one",
        runs / "two",
        "--label",
        "a",
        "--label",
        "b",
        "--baseline",
        "b",
        "--no-pair",
        "--json",
        "--no-report",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    labels = ["a (untrained)", "b (untrained)"]
    assert (told["labels"], told["baseline"], told["untrained"]) == (labels, labels[1], labels)
    found = told["differences"][labels[0]]
    loaded = Comparison.load(tmp_path / "out")
    assert loaded.pair is False
    assert found["pairing"]["reason"] == "the same 6 images: compared unpaired as requested"
    assert found["numbers"] == len(loaded.differences)
    assert found["significant"] == loaded.differences["significant"].sum()
    assert len(told["similarity"]) == 8
    assert (told["run"], told["report"]) == (str(tmp_path / "out"), None)
    assert loaded.provenance["seconds"] == told["seconds"]


def test_a_position_as_the_baseline(runs, tmp_path):
    result = tokenlens(
        "compare",
        runs / "one",
        runs / "two",
        "--baseline",
        1,
        "--no-report",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.stderr
    assert Comparison.load(tmp_path / "out").baseline.endswith("two")
    refused(tokenlens("compare", runs / "one", runs / "two", "--baseline", 2), "position from 0 to 1, got 2")
    refused(tokenlens("compare", runs / "one", runs / "two", "--baseline", "x"), "no model is labelled 'x'")


def test_a_model_is_analyzed_on_the_images_of_the_run(runs, tmp_path):
    result = tokenlens("compare", runs / "one", MODEL, "--no-pretrained", *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert f"analyzing {MODEL}" in result.stderr
    assert "the same 6 images, paired by image; none of " in result.stdout
    made = Comparison.load(tmp_path / "out").analyses[f"{MODEL} (untrained)"]
    assert made.provenance["images"]["names"] == Analysis.load(runs / "one").provenance["images"]["names"]


def test_two_models_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"TOKENLENS_COMPARE_LIMIT": "4", "TOKENLENS_COMPARE_IMG_SIZE": "64"}
    result = tokenlens("compare", MODEL, "test_vit2", "--no-pretrained", *QUICK, env=settings)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"run: {Path('reports') / f'compare_{MODEL}_test_vit2'}"
    found = Comparison.load(Path("reports") / f"compare_{MODEL}_test_vit2")
    assert found.labels == [f"{MODEL} (untrained)", "test_vit2 (untrained)"]
    assert {run.images for run in found.analyses.values()} == {4}


def test_the_report_is_drawn_into_the_folder(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenlens.report.write_report", lambda _, folder: (folder / "report.html").write_text("drawn"))
    result = tokenlens("compare", runs / "one", runs / "two", "--out", tmp_path / "out")
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").read_text() == "drawn"


def test_numbers_that_cannot_be_drawn_are_saved(runs, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("tokenlens.report.write_report", fail)
    refused(tokenlens("compare", runs / "one", runs / "two", "--out", tmp_path / "out"), "no ink", "tokenlens report")
    assert len(Comparison.load(tmp_path / "out").labels) == 2


def test_what_is_refused(runs, tmp_path):
    out = tmp_path / "reports" / "out"
    refused(tokenlens("compare", runs / "one", "--out", out), "at least two runs or models, got 1")
    refused(tokenlens("compare", runs / "one", runs / "nowhere", "--out", out), "neither a run folder nor a model")
    refused(tokenlens("compare", runs / "one", "vit_bose_patch16_224", "--out", out), "Did you mean vit_base_patch16")
    refused(tokenlens("compare", runs / "one", runs / "photographs", "--out", out), "not a finished run folder")
    for options, message in (
        (("--limit", 3), "limit only applies to models that are analyzed, but all 2 subjects are saved runs"),
        (("--label", "a"), "expected one label per subject (2)"),
        (("--label", "a", "--label", "a"), "labels must differ"),
    ):
        refused(tokenlens("compare", runs / "one", runs / "two", *options, "--out", out), message)
    assert tokenlens("compare", "--out", out).exit_code == 2
    assert not out.parent.exists()


def test_what_is_there_stays(runs, tmp_path, monkeypatch):
    assert tokenlens("compare", runs / "one", runs / "two", "--no-report", "--out", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "MANIFEST.json").read_bytes()
    monkeypatch.setattr(import_module("tokenlens.comparison.compare"), "compare", None)  # is not reached
    refused(tokenlens("compare", runs / "one", runs / "two", "--out", tmp_path / "out"), "--overwrite")
    refused(
        tokenlens("compare", runs / "one", runs / "two", "--out", runs / "two", "--overwrite"),
        "one of the runs",
    )
    assert (tmp_path / "out" / "MANIFEST.json").read_bytes() == before
    Analysis.load(runs / "two")


def test_damaged_and_newer_runs(runs, tmp_path):
    import shutil

    broken = Path(shutil.copytree(runs / "two", tmp_path / "broken"))
    (broken / "table.csv").write_text("model\n")
    refused(tokenlens("compare", runs / "one", broken, "--out", tmp_path / "out"), "table.csv was changed")
    newer = Path(shutil.copytree(runs / "two", tmp_path / "newer"))
    manifest = (newer / "MANIFEST.json").read_text().replace('"schema_version": 1', '"schema_version": 99')
    (newer / "MANIFEST.json").write_text(manifest)
    refused(tokenlens("compare", runs / "one", newer, "--out", tmp_path / "out"), "newer tokenlens")
    tokenlens("compare", runs / "one", runs / "two", "--no-report", "--out", tmp_path / "both")
    refused(tokenlens("compare", runs / "one", tmp_path / "both"), "of kind 'comparison', expected 'analysis'")
    assert not (tmp_path / "out").exists()
