"""Results of probes are saved and loaded whole."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

import tokenlens
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.probes import ProbeResult, probe


@pytest.mark.parametrize("task", ["knn", "segmentation"])
def test_a_result_is_saved_whole(task, colours, masks, tmp_path):
    result = probe("raw_pixels", task, colours if task == "knn" else masks, img_size=32)
    result.save(tmp_path / "run", report=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "result.json",
        "per_image.csv",
        "table.csv",
        "head.safetensors",
        "MANIFEST.json",
    }
    found = ProbeResult.load(tmp_path / "run")
    pd.testing.assert_frame_equal(found.per_image, result.per_image)
    pd.testing.assert_frame_equal(found.table, result.table)
    assert found.head.keys() == result.head.keys()
    assert all(torch.equal(found.head[name], tensor) for name, tensor in result.head.items())
    same = ("value", "ci_low", "ci_high", "n", "unit", "protocol", "model", "task", "untrained")
    assert all(getattr(found, name) == getattr(result, name) for name in same)
    assert repr(found) == repr(result)
    with pytest.raises(FileExistsError, match="--overwrite"):
        result.save(tmp_path / "run", report=False)
    result.save(tmp_path / "run", overwrite=True, report=False)
    (tmp_path / "run" / "table.csv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table.csv was changed"):
        ProbeResult.load(tmp_path / "run")


def test_a_run_of_another_kind_or_version_is_refused(colours, tmp_path):
    synthetic_analysis().save(tmp_path / "analysis", report=False)
    with pytest.raises(ValueError, match="kind 'analysis', expected 'probe'"):
        ProbeResult.load(tmp_path / "analysis")
    run = probe("raw_pixels", "knn", colours).save(tmp_path / "run", report=False)
    with pytest.raises(ValueError, match="kind 'probe', expected 'analysis'"):
        tokenlens.Analysis.load(run)
    manifest = json.loads((run / "MANIFEST.json").read_text(encoding="utf-8"))
    (run / "MANIFEST.json").write_text(json.dumps(manifest | {"schema_version": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="by a newer tokenlens"):
        ProbeResult.load(run)
