"""Run folders as results."""

from __future__ import annotations

import pytest

from tests.support.tiny_training import assert_same_weights
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.trained_run import TrainedRun


def test_missing_newer_and_damaged_runs_are_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="not a finished run folder"):
        TrainedRun.load(tmp_path)
    for text, message in (
        ("{", "damaged"),
        ('{"schema_version": 99, "kind": "training"}', "newer tokenlens"),
        ('{"schema_version": 1, "kind": "analysis"}', "kind 'analysis'"),
    ):
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            TrainedRun.load(tmp_path)


def test_a_run_is_a_result_that_can_be_copied(run, tmp_path):
    assert run.table.equals(run.metrics)
    assert run.provenance == run.settings
    copy = TrainedRun.load(run.save(tmp_path / "copy", report=False))
    assert (copy.path, copy.settings) == (tmp_path / "copy", run.settings)
    assert_same_weights(copy, run)
    check_manifest(copy.path)
    with pytest.raises(FileExistsError, match="--overwrite"):
        run.save(tmp_path / "copy", report=False)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")}
    assert run.save(run.path, report=False) == run.path
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")} == before
