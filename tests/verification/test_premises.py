"""Premises of F3 and F5, on constructed analyses and on real run folders."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from tokenlens.storage.run_folder import write_manifest
from tokenlens.verification import verify
from tokenlens.verification.premises import find_unmet_premises, judge_separation, measure_distance
from tokenlens.verification.runs import read_runs


def test_an_untrained_model_separates_nothing():
    assert judge_separation(SimpleNamespace(untrained=True)) == "not applicable"


def test_biases_do_not_show_that_weights_have_parted():
    table = pd.DataFrame(
        [
            ("weight_distance", "relative_distance", "norm/norm1.weight", 0.01),
            ("weight_distance", "relative_distance", "norm/norm2.weight", 0.03),
            ("weight_distance", "relative_distance", "norm/norm1.bias", 1.4),
            ("weight_distance", "relative_distance", "qkv/attn.qkv.weight", 0.1),
            ("weight_distance", "cosine", "qkv/attn.qkv.weight", 0.9),
        ],
        columns=["metric", "part", "site", "value"],
    )
    assert measure_distance(table) == pytest.approx({"norm": 0.02, "qkv": 0.1})


def test_a_folder_says_what_it_fails(found):
    """Six steps from a start: nothing separates, and nothing has parted."""
    [reasons] = find_unmet_premises(read_runs([found.path])).values()
    assert any("does not separate CLS from patches" in reason for reason in reasons)
    f3 = next(finding for finding in found.findings if finding.name == "F3")
    assert f3.verdict == "not applicable"
    assert all(reason in f3.sentence for reason in reasons)


def test_a_folder_without_what_a_rule_needs_is_not_applicable(found, copy, tmp_path):
    """`verify --from` a folder without analyses or scores per image"""
    for folder in (copy / "analyses").glob("*_seed*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    pixels = copy / "probes" / "paper_seed1_segmentation_32"
    pd.read_csv(pixels / "per_image.csv")[["image"]].to_csv(pixels / "per_image.csv", index=False)
    (pixels / "MANIFEST.json").unlink()
    write_manifest(pixels)
    [reasons] = find_unmet_premises(read_runs([copy])).values()
    for said in ("no analyses of the standard models", "was not measured", "no scores per test image"):
        assert any(said in reason for reason in reasons), said
    judged = verify(runs=[copy], out=tmp_path / "judged", report=False)
    f3 = next(finding for finding in judged.findings if finding.name == "F3")
    assert f3.verdict == "not applicable"
    assert all(reason in f3.sentence for reason in reasons)


def test_models_that_end_below_their_start_and_seeds_with_other_heads(found):
    runs = read_runs([found.path])
    runs.start_numbers["value"] += 90
    for model in runs.models:
        model.run.settings["recipe"]["objective"] = "distill"
        vars(model.run).pop("recipe", None)
    [reasons] = find_unmet_premises(runs).values()
    assert sum("end below their start" in reason for reason in reasons) == 2
    assert any("seeds are not exchangeable" in reason for reason in reasons)


def test_a_verification_whose_run_folders_are_gone_is_judged_by_its_numbers(found, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "verify.json").write_text(json.dumps({"schema_version": 1, "kind": "verification"}))
    found.numbers.drop(columns="draws").to_csv(tmp_path / "old" / "numbers.csv", index=False)
    runs = read_runs([tmp_path / "old"])
    pd.testing.assert_frame_equal(runs.numbers, found.numbers, check_dtype=False)
    assert "run folders are gone" in runs.left_out[0][1]
    [reasons] = find_unmet_premises(runs).values()
    assert any("no analyses" in reason for reason in reasons)
