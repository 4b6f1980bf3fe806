"""``verify`` from nothing to verdicts, on models of two blocks; and the same numbers once more, with pandas alone."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tokenlens
from tests.support.tiny_verification import tiny_data, tiny_regime
from tokenlens.figures import verify_pairs
from tokenlens.figures._variants import variant_look
from tokenlens.storage.run_folder import check_manifest
from tokenlens.verification.data import find_data, training_images
from tokenlens.verification.findings import third
from tokenlens.verification.runs import gather
from tokenlens.verification.scales.base import RegimeProbe, regime_of, regimes
from tokenlens.verification.variants import specialization_of, variant_of
from tokenlens.verification.verify import Verification, plan, verify

SEEDS = 3
TASKS = SEEDS * 2 * 5
VARIANTS = ("standard", "norms", "paper", "qkv_all", "everything", "qkv_first_third", "mlp", "proj")
ROUNDING = 2e-5
"""Percentage points: torchmetrics divides in float32."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    """Three seeds of two variants, the whole of it."""
    return verify(tiny_regime(), data, seeds=SEEDS, out=tmp_path_factory.mktemp("verify") / "toy")


@pytest.fixture
def copy(found, tmp_path):
    """The same folder, to be spoilt."""
    return Path(shutil.copytree(found.path, tmp_path / "toy"))


# -- what comes out


def test_every_task_is_done_and_judged(found):
    assert found.finished
    assert len(found.plan) == TASKS
    assert (found.plan["minutes"] == 0).all()
    assert not found.left_out
    names = [(finding.name, finding.subject) for finding in found.findings]
    pair = "paper against standard"
    assert names == [
        ("F1", "standard"),
        ("F1", "paper"),
        ("F2", "standard"),
        ("F2", "paper"),
        ("F3", pair),
        ("F4", pair),
        ("F5", "norms against standard"),
        ("F6", pair),
    ]
    for finding in found.findings:
        assert finding.scale
        assert finding.rule
        if finding.name not in ("F4", "F5"):
            assert finding.seeds == SEEDS
    assert "24 images, 6 steps of 8" in found.findings[4].scale


def test_the_folder_is_finished_and_holds_everything(found):
    files = check_manifest(found.path)["files"]
    for name in (
        "numbers.csv",
        "findings.json",
        "verify.json",
        "report.html",
        "figures/verify_pairs.svg",
        "runs/paper_seed0/MANIFEST.json",
        "probes/standard_seed2_knn_cls_32/MANIFEST.json",
    ):
        assert name in files
    assert not [name for name in files if name.endswith((".ckpt", ".safetensors"))], "they are in their own manifests"
    loaded = Verification.load(found.path)
    assert loaded.findings == found.findings
    pd.testing.assert_frame_equal(loaded.numbers, found.numbers)
    pd.testing.assert_frame_equal(loaded.effects, found.effects, check_dtype=False)


def test_pairs_share_everything_but_the_specialization(found):
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in (found.path / "runs").iterdir()}
    for seed in range(SEEDS):
        one, other = (runs[f"{variant}_seed{seed}"] for variant in ("standard", "paper"))
        assert one["recipe"] | {"specialization": "paper"} == other["recipe"]
        assert one["data"] == other["data"]
        assert other["parameters"]["model"] > one["parameters"]["model"]
    assert {run["recipe"]["seed"] for run in runs.values()} == set(range(SEEDS))


# -- an independent computation


def test_all_numbers_follow_from_the_run_folders(found):
    """With pandas and NumPy alone, from the files that the probes and trainings have written."""
    told = found.numbers.set_index(["variant", "seed", "task", "source", "resolution"])
    rows = {}
    for variant in ("standard", "paper"):
        for seed in range(SEEDS):
            name = f"{variant}_seed{seed}"
            for size in (32, 64):
                pixels = pd.read_csv(found.path / "probes" / f"{name}_segmentation_{size}" / "per_image.csv")
                iou = []
                for label in ("ground", "sky", "thing"):
                    hit, labelled, predicted = (
                        pixels[f"{what}: {label}"].sum() for what in ("hit", "labelled", "predicted")
                    )
                    iou.append(hit / (labelled + predicted - hit))
                rows[variant, seed, "segmentation", "patches", size] = 100 * np.mean(iou)
            hits = pd.read_csv(found.path / "probes" / f"{name}_knn_cls_32" / "per_image.csv")["correct"]
            rows[variant, seed, "knn", "cls", 32] = 100 * hits.mean()
            metrics = pd.read_csv(found.path / "runs" / name / "metrics.csv")
            last = metrics[metrics["step"] > 0.9 * metrics["step"].max()]
            rows[variant, seed, "training", "loss", 32] = last["loss"].mean()
    assert set(rows) == set(told.index)
    for key, value in rows.items():
        assert told.loc[key, "value"] == pytest.approx(value, rel=1e-6), key

    seeds = range(SEEDS)
    dense = [
        np.mean(
            [
                rows["paper", s, "segmentation", "patches", size] - rows["standard", s, "segmentation", "patches", size]
                for size in (32, 64)
            ]
        )
        for s in seeds
    ]
    finding = next(finding for finding in found.findings if finding.name == "F3")
    interval = stats.ttest_1samp(dense, 0).confidence_interval()
    assert finding.effect == pytest.approx(np.mean(dense), abs=ROUNDING)
    assert finding.interval == pytest.approx((interval.low, interval.high), abs=ROUNDING)
    error = np.std(dense, ddof=1) / math.sqrt(SEEDS)
    limit = stats.t.ppf(0.975, SEEDS - 1)
    assert stats.nct.sf(limit, SEEDS - 1, finding.detectable / error) == pytest.approx(0.8, abs=1e-3)
    whole = found.effects[found.effects["cell"] == "mean"].set_index(["variant", "against", "measure"])
    assert whole.loc[("paper", "standard", "mIoU"), "difference"] == pytest.approx(np.mean(dense), abs=ROUNDING)
    accuracy = [rows["paper", s, "knn", "cls", 32] - rows["standard", s, "knn", "cls", 32] for s in seeds]
    assert whole.loc[("paper", "standard", "accuracy"), "difference"] == pytest.approx(np.mean(accuracy))
    losses = [rows["paper", s, "training", "loss", 32] - rows["standard", s, "training", "loss", 32] for s in seeds]
    assert whole.loc[("paper", "standard", "loss"), "difference"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_f1_is_that_of_the_analyses(found):
    falls = []
    for seed in range(SEEDS):
        table = pd.read_csv(found.path / "analyses" / f"paper_seed{seed}" / "table.csv", keep_default_na=False)
        rows = table[
            (table["metric"] == "norm_differentiation")
            & (table["part"] == "total")
            & (table["site"] == "norm1")
            & (table["group"] == "cls-patch")
        ]
        falls.append(rows["value"].astype(float).mean())
    finding = found.findings[1]
    assert (finding.name, finding.subject) == ("F1", "paper")
    assert finding.effect == pytest.approx(np.mean(falls), rel=1e-5, abs=1e-6)


# -- nothing to find


@pytest.mark.slow
def test_with_shuffled_labels_and_masks_f3_is_not_supported(tmp_path):
    shuffled = tiny_data(tmp_path / "data", shuffled=True)
    found = verify(tiny_regime(), shuffled, seeds=SEEDS, out=tmp_path / "toy", report=False)
    assert next(f for f in found.findings if f.name == "F3").verdict in ("not supported", "inconclusive")


@pytest.mark.slow
def test_two_standard_models_in_place_of_the_pair_do_not_support_f3(data, copy):
    found = verify(tiny_regime(), data, seeds=SEEDS, variants=["standard", "twin"], out=copy, report=False)
    twins = found.numbers[found.numbers["variant"] == "twin"]
    assert set(twins["seed"]) == set(range(SEEDS))
    assert set(twins["preset"]) == {"standard"}
    seeds = {json.loads(file.read_text())["recipe"]["seed"] for file in copy.glob("runs/twin_seed*/run.json")}
    assert not seeds & set(range(SEEDS)), "a twin is trained from a seed of its own"
    control = next(finding for finding in found.findings if finding.subject == "twin against standard")
    assert control.verdict in ("not supported", "inconclusive")
    named = found.numbers[found.numbers["variant"] != "paper"].replace({"variant": {"twin": "paper"}})
    assert third(named, named["setting"].iloc[0]).verdict == control.verdict


# -- stopping and going on


def test_what_is_done_is_not_done_again(found, data, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.parent != copy}
    said = []
    again = verify(tiny_regime(), data, seeds=SEEDS, out=copy, report=False, progress=lambda *told: said.append(told))
    assert not said
    assert again.findings == found.findings
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_what_is_missing_is_done_again(found, data, copy):
    shutil.rmtree(copy / "probes" / "paper_seed1_knn_cls_32")
    shutil.rmtree(copy / "analyses" / "standard_seed0")
    said = []
    again = verify(
        tiny_regime(), data, seeds=SEEDS, out=copy, report=False, progress=lambda what, *_: said.append(what)
    )
    assert list(dict.fromkeys(said)) == ["1 of 2: analyze: standard, seed 0", "2 of 2: probe knn_cls_32: paper, seed 1"]
    pd.testing.assert_frame_equal(again.numbers, found.numbers)
    assert again.finished


def test_it_stops_in_time_and_goes_on(data, tmp_path):
    out = tmp_path / "toy"
    regime = tiny_regime(probes=(RegimeProbe("knn", 32, "cls"),), analyzed_images=2)
    first = verify(regime, data, seeds=1, out=out, max_minutes=1e-9, report=False)
    assert not first.finished
    assert (first.plan["state"] == "open").all()
    middle = verify(regime, data, seeds=1, out=out, max_minutes=0.02, report=False)
    assert not (out / "MANIFEST.json").exists() or middle.finished
    for _ in range(8):
        last = verify(regime, data, seeds=1, out=out, max_minutes=0.05, report=False)
        if last.finished:
            break
    assert last.finished
    assert (out / "MANIFEST.json").exists()
    assert all(finding.verdict == "inconclusive" for finding in last.findings if finding.name not in ("F2", "F4"))


def test_more_seeds_join_and_another_configuration_does_not(found, data, copy):
    more = plan(tiny_regime(), data, seeds=SEEDS + 1, out=copy)
    assert (more["state"] != "done").sum() == 2 * 5
    with pytest.raises(ValueError, match=r"regime\.recipe\.lr is 0.001 there and 0.5 now"):
        plan(tiny_regime(recipe=replace(tiny_regime().recipe, lr=0.5)), data, out=copy)
    with pytest.raises(ValueError, match=r"regime\.analyzed_images is 9 there and 5 now"):
        plan(tiny_regime(analyzed_images=5), data, out=copy)
    (copy.parent / "other").mkdir()
    (copy.parent / "other" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds no verification"):
        plan(tiny_regime(), data, out=copy.parent / "other")


def test_one_task_of_an_array(data, tmp_path):
    out = tmp_path / "toy"
    regime = tiny_regime(probes=(RegimeProbe("knn", 32, "cls"),))
    verify(regime, data, seeds=1, out=out, task=1)
    assert [path.name for path in (out / "runs").iterdir()] == ["paper_seed0"]
    with pytest.raises(ValueError, match="needs the finished training"):
        verify(regime, data, seeds=1, out=out, task=2)
    with pytest.raises(LookupError, match="tasks 0 to 5, got 9"):
        verify(regime, data, seeds=1, out=out, task=9)


def test_the_plan_learns_from_what_was_measured(found, data):
    tasks = plan(tiny_regime(), data, seeds=SEEDS + 1, out=found.path)
    left = tasks[tasks["state"] != "done"]
    assert set(left["basis"]) == {"measured"}
    seconds = [json.loads(file.read_text())["seconds"] for file in found.path.glob("runs/*/run.json")]
    assert left[left["what"] == "train"]["minutes"].iloc[0] == pytest.approx(np.median(seconds) / 60)
    guessed = plan(tiny_regime(), data, seeds=1, out=found.path.parent / "new")
    assert guessed["basis"].str.startswith("guess: nowhere").all()
    assert guessed["minutes"].iloc[0] == pytest.approx(6 * 8 / 100 / 60)


# -- runs that exist


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
    assert f3.verdict == "inconclusive"
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
    assert given.findings == found.findings
    with pytest.raises(ValueError, match="is one of the runs that are judged"):
        verify(runs=[found.path], out=found.path)
    with pytest.raises(FileNotFoundError):
        gather([tmp_path / "nowhere"])


def test_an_unfinished_training_is_left_out(found, copy):
    settings = json.loads((copy / "runs" / "paper_seed0" / "run.json").read_text())
    (copy / "runs" / "paper_seed0" / "run.json").write_text(json.dumps(settings | {"state": "stopped", "step": 3}))
    left_out = {Path(folder).name: reason for folder, reason in gather([copy]).left_out}
    assert left_out["paper_seed0"] == "stopped at step 3 of 6"
    assert left_out["paper_seed0_knn_cls_32"] == "its model is none of the trainings"


def test_another_configuration_is_another_setting(found, copy):
    for file in copy.glob("runs/*_seed0/run.json"):
        settings = json.loads(file.read_text())
        settings["recipe"]["lr"] = 0.5
        file.write_text(json.dumps(settings))
    numbers = gather([copy]).numbers
    assert numbers.groupby("setting")["seed"].unique().map(sorted).tolist() == [[0], [1, 2]]


# -- parts


def test_variants_have_names():
    for name in VARIANTS:
        assert variant_of(specialization_of(name)) == name
    with pytest.raises(LookupError, match=r"no variant is called 'papr'. Did you mean paper"):
        specialization_of("papr")


def test_every_variant_has_a_look_of_its_own():
    looks = [variant_look(name) for name in (*VARIANTS, "twin", "one of a user's own")]
    for part in (("color", "marker"), ("color", "linestyle")):
        assert len({tuple(look[key] for key in part) for look in looks}) == len(looks)
    ablations = (*regime_of("tiny").variants, "norms", "qkv_all", "mlp", "proj")
    assert len({variant_look(name)["color"] for name in ablations}) == len(ablations)


def test_a_mean_is_drawn_where_there_is_more_than_one_number(found):
    drawn = verify_pairs.frame(found)
    for (_, measure), rows in drawn[drawn["variant"] == "paper"].groupby(["variant", "measure"]):
        cells = {cell for cell in rows["cell"] if measure != "accuracy" or " cls " in cell}
        assert ("mean" in set(rows["cell"])) == (len(cells - {"mean"}) > 1)
        assert set(rows[rows["seed"].notna()]["cell"]) == set(rows["cell"]), "every mean has its dots"


@pytest.mark.parametrize("name", regimes.names())
def test_regimes_are_whole(name):
    regime = regime_of(name)
    assert {probe.task for probe in regime.probes} >= {"segmentation"}
    assert len({probe.name for probe in regime.probes}) == len(regime.probes)
    assert {"standard", "paper"} <= {*regime.variants}
    assert regime.seeds >= 3
    for variant in regime.variants:
        specialization_of(variant)
    assert regimes.describe(name)


def test_the_tiny_regime_takes_less_than_90_minutes(data, tmp_path):
    tiny = regime_of("tiny")
    images = tiny.train_images * (tiny.recipe.epochs or 0)
    pace = tiny.pace
    each = images / pace.train / 60 + pace.analyze + sum(pace.probes[probe.task] for probe in tiny.probes)
    assert pace.first + tiny.seeds * len(tiny.variants) * each < 90


def test_training_images_are_as_many_of_each_class(data):
    source = find_data(data).labelled
    images = training_images(source, 24)
    assert np.bincount(images.labels).tolist() == [8, 8, 8]
    assert "a random 8 of each class, 24 of 33 (seed 0)" in images.description["split"]
    assert images.description["count"] == len(images) == len(images.names) == 24
    assert images.description["sha256"] == training_images(source, 25).description["sha256"]
    assert images.description["sha256"] != training_images(source, None).description["sha256"]
    assert [images.read(place).size for place in (0, 23)] == [(40, 40), (40, 40)]
    with pytest.raises(ValueError, match="2 images cannot be of 3 classes"):
        training_images(source, 2)


def test_data_are_looked_for(data, tmp_path):
    found = find_data(data, teacher_file="teacher.safetensors")
    assert found.labelled == str(data / "classification")
    assert found.masks == str(data / "segmentation" / "toy")
    assert found.images == str(data / "photos")
    assert found.teacher is None
    assert find_data(labelled="wds/x", images="sample").masks is None
    with pytest.raises(ValueError, match="expected a folder with classification/"):
        find_data(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        find_data(tmp_path / "nowhere")
    for name in ("a", "b"):
        (tmp_path / "classification" / name / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="found 2 of it"):
        find_data(tmp_path)


def test_it_is_public():
    assert tokenlens.verify is verify
    assert tokenlens.Verification is Verification
