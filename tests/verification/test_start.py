"""``verify --start``: every training starts from the same weights, which are reported and not judged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from tests.support.command_line import tokenlens
from tests.support.tiny_verification import replace_scale, tiny_scale
from tests.verification.conftest import SEEDS
from tokenlens.storage.run_folder import check_manifest
from tokenlens.verification import verify
from tokenlens.verification.start import find_start


def test_every_training_starts_from_these_weights(found, start):
    kept, given = load_file(found.path / "start" / "model.safetensors"), load_file(start / "model.safetensors")
    assert kept.keys() == given.keys(), "the classifier, too: a training of this recipe keeps it"
    assert all(torch.equal(kept[name], given[name]) for name in kept)
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in (found.path / "runs").iterdir()}
    assert len(runs) == 2 * SEEDS
    assert {run["start"]["given"] for run in runs.values()} == {str(start)}
    assert len({run["start"]["sha256"] for run in runs.values()}) == 1
    told = json.loads((found.path / "verify.json").read_text())["start"]
    assert told["given"] == str(start)
    assert "seed 77" in told["source"]
    assert len(told["sha256"]) == 64
    assert "start/MANIFEST.json" in check_manifest(found.path)["files"]


def test_standard_and_specialized_are_one_function_at_the_start(found):
    losses = {}
    for variant in ("standard", "paper"):
        first = pd.read_csv(found.path / "runs" / f"{variant}_seed1" / "diagnostics.csv").query("step == 0")
        rows = first[(first["metric"] == "norm_differentiation") & (first["part"] == "total")]
        losses[variant] = rows[["site", "block", "group", "value"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(losses["standard"], losses["paper"], atol=1e-5)


def test_the_scale_says_from_where(found, start):
    for finding in found.findings:
        if finding.name in ("F1", "F2", "F3", "F5"):
            assert finding.scale.endswith(f", continued from {start.parent.name}/before")
    assert "continued from" in found.numbers["setting"].iloc[0]


def test_the_start_is_probed_once_and_not_judged(found):
    assert "start" not in set(found.numbers["variant"])
    assert "start" not in set(found.effects["variant"])
    assert not [finding for finding in found.findings if "start" in finding.subject]
    assert not found.left_out
    folders = sorted(path.name for part in ("analyses", "probes") for path in (found.path / part).glob("start*"))
    assert folders == ["start", "start_knn_cls_32", "start_segmentation_32", "start_segmentation_64"]
    assert (found.stages_by_seed["variant"] == "start").any()
    told = found.continued
    assert set(told["variant"]) == {"standard", "paper"}

    def accuracy(name):
        return 100 * pd.read_csv(found.path / "probes" / f"{name}_knn_cls_32" / "per_image.csv")["correct"].mean()

    before = accuracy("start")
    for variant in ("standard", "paper"):
        row = told[(told["variant"] == variant) & (told["task"] == "knn")].iloc[0]
        after = [accuracy(f"{variant}_seed{seed}") for seed in range(SEEDS)]
        assert row["start"] == pytest.approx(before)
        assert row["mean"] == pytest.approx(np.mean(after))
        assert row["difference"] == pytest.approx(np.mean(after) - before, abs=1e-9)
        if np.std(after) > 0:
            interval = stats.ttest_1samp(np.array(after) - before, 0).confidence_interval()
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))


def test_the_page_says_it(found, start):
    page = (found.path / "report.html").read_text(encoding="utf-8")
    assert "Change from the starting weights" in page
    assert f"Every training starts from the weights of {start}" in page
    assert '<figure id="verify_scores"' in page


def test_the_plan_and_the_command_line_say_it(found, data, start, tmp_path, monkeypatch):
    replace_scale(tiny_scale(), monkeypatch)
    result = tokenlens("verify", "--data", data, "--plan", "--start", start, "--out", tmp_path / "toy")
    lines = result.stdout.splitlines()
    assert lines[0] == f"every training starts from {start}, which is also probed and analyzed"
    assert lines[1].split()[:4] == ["0", "analyze", "start", "open"]
    assert lines[-1].startswith(f"tasks left: {4 + SEEDS * 2 * 5} of {4 + SEEDS * 2 * 5}")
    assert not (tmp_path / "toy").exists()
    judged = tokenlens("verify", "--from", found.path, "--out", tmp_path / "judged", "--json", "--no-report")
    told = json.loads(judged.stdout)
    assert len(told["continued"]) == 2 * 3
    assert "Fall of the CLS–patch cosine" in told["stages"][0]


def test_what_does_not_fit_is_said_before_there_is_a_folder(found, data, tmp_path):
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for given, error, said in (
        (
            found.path / "runs" / "paper_seed0",
            ValueError,
            "can start from.*Expected weights of a standard vit_tiny_patch",
        ),
        (tmp_path / "nowhere", LookupError, "there is no file or folder"),
        (tmp_path / "other.pth", ValueError, "can start from"),
    ):
        with pytest.raises(error, match=said):
            verify(tiny_scale(), data, seeds=1, start=given, out=tmp_path / "toy")
        assert not (tmp_path / "toy").exists()


def test_a_start_can_be_cut_to_its_first_blocks(start):
    """a start with fewer blocks than the scale keeps (`truncated`)"""
    whole, cut = find_start(str(start)), find_start(str(start), 2)
    assert {name for name in whole.tensors if name not in cut.tensors} == {
        name for name in whole.tensors if name.startswith("blocks.2.")
    }
    assert cut.source.endswith("its first 2 of 3 blocks")
    assert cut.sha256 == whole.sha256
    with pytest.raises(ValueError, match=r"at least 5 blocks named blocks\.0, blocks\.1 … in .*, found 3"):
        find_start(str(start), 5)
