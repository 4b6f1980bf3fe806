"""Existing run folders are read, matched and judged, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tokenlens.verification import verify
from tokenlens.verification.runs import read_runs


def test_runs_are_judged_without_training(found, tmp_path):
    runs = [
        found.path / part / name
        for part, names in {
            "runs": ("standard_seed0", "paper_seed0"),
            "probes": ("standard_seed0_segmentation_32", "paper_seed0_segmentation_32", "paper_seed1_segmentation_32"),
            "analyses": ("paper_seed0", "standard_seed1"),
        }.items()
        for name in names
    ]
    given = verify(runs=runs, out=tmp_path / "given", report=False)
    f3 = next(finding for finding in given.findings if finding.name == "F3")
    assert f3.verdict == "not applicable"
    assert f3.sentence.startswith("F3 does not apply: ")
    assert f3.seeds == 1
    assert [(Path(folder).name, reason) for folder, reason in given.left_out] == [
        ("paper_seed1_segmentation_32", "its model is none of the trainings")
    ]
    alone = next(finding for finding in given.findings if finding.subject.endswith("standard_seed1"))
    assert alone.seeds is None
    assert given.plan.empty
    assert given.finished


def test_verifications_are_judged_together(found, tmp_path):
    given = verify(runs=[found.path], out=tmp_path / "given", report=False)
    pd.testing.assert_frame_equal(given.numbers, found.numbers)
    pd.testing.assert_frame_equal(given.continued, found.continued)
    assert given.findings == found.findings
    with pytest.raises(ValueError, match="is one of the runs to judge"):
        verify(runs=[found.path], out=found.path)
    with pytest.raises(FileNotFoundError):
        read_runs([tmp_path / "nowhere"])


def test_an_unfinished_training_is_left_out(found, copy):
    settings = json.loads((copy / "runs" / "paper_seed0" / "run.json").read_text())
    (copy / "runs" / "paper_seed0" / "run.json").write_text(json.dumps(settings | {"state": "stopped", "step": 3}))
    left_out = {Path(folder).name: reason for folder, reason in read_runs([copy]).left_out}
    assert left_out["paper_seed0"] == "stopped at step 3 of 6"
    assert left_out["paper_seed0_knn_cls_32"] == "its model is none of the trainings"


def test_another_configuration_is_another_setting(found, copy):
    for file in copy.glob("runs/*_seed0/run.json"):
        settings = json.loads(file.read_text())
        settings["recipe"]["lr"] = 0.5
        file.write_text(json.dumps(settings))
    numbers = read_runs([copy]).numbers
    assert numbers.groupby("setting")["seed"].unique().map(sorted).tolist() == [[0], [1, 2]]


def test_a_start_without_trainings_is_no_model_to_judge(found, tmp_path):
    copy = Path(shutil.copytree(found.path, tmp_path / "toy", ignore=shutil.ignore_patterns("*_seed*")))
    judged = verify(runs=[copy], out=tmp_path / "judged", report=False)
    assert not judged.left_out
    assert not [finding for finding in judged.findings if finding.name.startswith(("F1", "F2"))]
    assert judged.stages.empty


def test_a_start_of_another_path_is_the_same_setting(found, tmp_path):
    """Weights are known by their SHA-256, wherever they are."""
    elsewhere = Path(shutil.copytree(found.path / "runs" / "standard_seed0", tmp_path / "standard_seed9"))
    settings = json.loads((elsewhere / "run.json").read_text())
    settings["start"]["given"] = "somewhere/else.safetensors"
    settings["recipe"]["seed"] = 9
    (elsewhere / "run.json").write_text(json.dumps(settings))
    assert read_runs([found.path, elsewhere]).numbers["setting"].nunique() == 1
