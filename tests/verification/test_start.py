"""``verify --start``: every training from the same weights, which stand beside the verdict and are not judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from tests.support.command_line import tokenlens
from tests.support.tiny_verification import tiny_data, tiny_regime
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.train import train
from tokenlens.verification.scales.base import RegimeProbe, regime_of
from tokenlens.verification.verify import plan, verify

SEEDS = 3
PROBES = (RegimeProbe("segmentation", 32), RegimeProbe("knn", 32, "cls"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def before(data, tmp_path_factory):
    """A run folder to start from: the regime's model, and another seed than any of its trainings."""
    recipe = replace(tiny_regime().recipe, seed=77)
    return train(recipe, data / "classification", tmp_path_factory.mktemp("runs") / "before", name="tiny").path


@pytest.fixture(scope="module")
def found(data, before, tmp_path_factory):
    out = tmp_path_factory.mktemp("verify") / "toy"
    return verify(tiny_regime(probes=PROBES), data, seeds=SEEDS, start=before, out=out)


def test_every_training_starts_from_these_weights(found, before):
    kept, given = load_file(found.path / "start" / "model.safetensors"), load_file(before / "model.safetensors")
    assert kept.keys() == given.keys(), "the classifier, too: a training of this recipe goes on with it"
    assert all(torch.equal(kept[name], given[name]) for name in kept)
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in (found.path / "runs").iterdir()}
    assert len(runs) == 2 * SEEDS
    assert {run["start"]["given"] for run in runs.values()} == {str(before)}
    assert len({run["start"]["sha256"] for run in runs.values()}) == 1
    told = json.loads((found.path / "verify.json").read_text())["start"]
    assert told["given"] == str(before)
    assert "seed 77" in told["source"]
    assert len(told["sha256"]) == 64
    assert "start/MANIFEST.json" in check_manifest(found.path)["files"]


def test_the_first_task_of_an_array_of_jobs_needs_no_training(data, before, tmp_path):
    out = tmp_path / "toy"
    assert plan(tiny_regime(probes=PROBES), data, seeds=1, start=before, out=out)["variant"].iloc[0] == "start"
    verify(tiny_regime(probes=PROBES), data, seeds=1, start=before, out=out, task=0)
    assert plan(tiny_regime(probes=PROBES), data, seeds=1, start=before, out=out)["state"].iloc[0] == "done"


def test_standard_and_specialized_are_one_function_at_the_start(found):
    losses = {}
    for variant in ("standard", "paper"):
        first = pd.read_csv(found.path / "runs" / f"{variant}_seed1" / "diagnostics.csv").query("step == 0")
        rows = first[(first["metric"] == "norm_differentiation") & (first["part"] == "total")]
        losses[variant] = rows[["site", "block", "group", "value"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(losses["standard"], losses["paper"], atol=1e-5)


def test_the_scale_says_from_where(found, before):
    for finding in found.findings:
        if finding.name in ("F1", "F2", "F3", "F5"):
            assert finding.scale.endswith(f", continued from {before.parent.name}/before")
    assert "continued from" in found.numbers["setting"].iloc[0]


def test_the_start_is_probed_once_and_not_judged(found):
    assert "start" not in set(found.numbers["variant"])
    assert "start" not in set(found.effects["variant"])
    assert not [finding for finding in found.findings if "start" in finding.subject]
    assert not found.left_out
    folders = sorted(path.name for part in ("analyses", "probes") for path in (found.path / part).glob("start*"))
    assert folders == ["start", "start_knn_cls_32", "start_segmentation_32"]
    assert (found.stages_by_seed["variant"] == "start").any()
    told = found.continued
    assert set(told["variant"]) == {"standard", "paper"}
    for variant in ("standard", "paper"):
        row = told[(told["variant"] == variant) & (told["task"] == "knn")].iloc[0]
        hits = pd.read_csv(found.path / "probes" / "start_knn_cls_32" / "per_image.csv")["correct"]
        after = [
            100
            * pd.read_csv(found.path / "probes" / f"{variant}_seed{seed}_knn_cls_32" / "per_image.csv")[
                "correct"
            ].mean()
            for seed in range(SEEDS)
        ]
        assert row["start"] == pytest.approx(100 * hits.mean())
        assert row["mean"] == pytest.approx(np.mean(after))
        assert row["difference"] == pytest.approx(np.mean(after) - 100 * hits.mean(), abs=1e-9)
        if np.std(after) > 0:
            interval = stats.ttest_1samp(np.array(after) - 100 * hits.mean(), 0).confidence_interval()
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))


def test_the_page_says_it(found, before):
    page = (found.path / "report.html").read_text(encoding="utf-8")
    assert "What training on did to the start" in page
    assert f"The weights are those of {before} for every training" in page
    assert '<figure id="verify_scores"' in page


def test_it_goes_on_and_is_judged_again(found, data, before, tmp_path):
    copy = Path(shutil.copytree(found.path, tmp_path / "toy"))
    shutil.rmtree(copy / "probes" / "start_knn_cls_32")
    said = []
    again = verify(
        tiny_regime(probes=PROBES),
        data,
        seeds=SEEDS,
        start=before,
        out=copy,
        report=False,
        progress=lambda what, *_: said.append(what),
    )
    assert list(dict.fromkeys(said)) == ["1 of 1: probe knn_cls_32: start"]
    pd.testing.assert_frame_equal(again.continued, found.continued)
    with pytest.raises(ValueError, match=r"start is .* there and None now"):
        plan(tiny_regime(probes=PROBES), data, out=copy)
    judged = verify(runs=[copy], out=tmp_path / "judged", report=False)
    pd.testing.assert_frame_equal(judged.continued, found.continued)
    assert judged.findings == found.findings


def test_a_start_without_trainings_is_no_model_to_judge(found, tmp_path):
    copy = Path(shutil.copytree(found.path, tmp_path / "toy", ignore=shutil.ignore_patterns("*_seed*")))
    judged = verify(runs=[copy], out=tmp_path / "judged", report=False)
    assert not judged.left_out
    assert not [finding for finding in judged.findings if finding.name in ("F1", "F2")]
    assert judged.stages.empty


def test_a_start_of_another_path_is_the_same_setting(found, data, before, tmp_path):
    """Weights are known by their SHA-256, wherever they are."""
    elsewhere = Path(shutil.copytree(found.path / "runs" / "standard_seed0", tmp_path / "standard_seed9"))
    settings = json.loads((elsewhere / "run.json").read_text())
    settings["start"]["given"] = "somewhere/else.safetensors"
    settings["recipe"]["seed"] = 9
    (elsewhere / "run.json").write_text(json.dumps(settings))
    judged = verify(runs=[found.path, elsewhere], out=tmp_path / "judged", report=False)
    assert judged.numbers["setting"].nunique() == 1


def test_the_plan_and_the_command_line_say_it(found, data, before, tmp_path, monkeypatch):
    regime = tiny_regime(probes=PROBES)
    monkeypatch.setattr("tokenlens.verification.scales.regime_of", lambda name: regime)
    monkeypatch.setattr("tokenlens.verification.verify.regime_of", lambda name: regime)
    result = tokenlens("verify", "--data", data, "--plan", "--start", before, "--out", tmp_path / "toy")
    lines = result.stdout.splitlines()
    assert lines[0] == f"every training starts from {before}, which is probed and analyzed, too"
    assert lines[1].split()[:4] == ["0", "analyze", "start", "open"]
    assert lines[-1].startswith(f"{3 + SEEDS * 2 * 4} of {3 + SEEDS * 2 * 4} tasks left")
    assert not (tmp_path / "toy").exists()
    judged = tokenlens("verify", "--from", found.path, "--out", tmp_path / "judged", "--json", "--no-report")
    told = json.loads(judged.stdout)
    assert len(told["continued"]) == 2 * 2
    assert "Fall of the CLS–patch cosine" in told["stages"][0]


@pytest.mark.parametrize("what", ["specialized", "nothing", "other"])
def test_what_does_not_fit_is_said_before_there_is_a_folder(found, data, what, tmp_path):
    given = {
        "specialized": found.path / "runs" / "paper_seed0",
        "nothing": tmp_path / "nowhere",
        "other": tmp_path / "other.pth",
    }[what]
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises((ValueError, LookupError), match=r"can start from|no model is called") as told:
        verify(tiny_regime(probes=PROBES), data, seeds=1, start=given, out=tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    if what == "specialized":
        assert "Expected weights of a standard vit_tiny_patch16_224" in str(told.value)


def test_the_regime_starts_from_the_shipped_model():
    regime = regime_of("tiny_continued")
    assert regime.start == "tokenlens_tiny"
    tiny = regime_of("tiny")
    assert set(regime.probes) < set(tiny.probes)
    assert regime.recipe.warmup > tiny.recipe.warmup
    images = regime.train_images * (regime.recipe.epochs or 0)
    pace = regime.pace
    each = images / pace.train / 60 + pace.analyze + sum(pace.probes[probe.task] for probe in regime.probes)
    assert pace.first + regime.seeds * len(regime.variants) * each < 90
