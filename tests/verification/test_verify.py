"""``verify`` from nothing to verdicts; and the same numbers once more, with pandas alone."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.support.tiny_verification import tiny_data, tiny_scale
from tests.verification.conftest import SEEDS, knn_hits
from tokenlens.analysis import Analysis, judge
from tokenlens.storage.run_folder import check_manifest
from tokenlens.verification import ScaleProbe, Verification, verify
from tokenlens.verification.findings import judge_f3
from tokenlens.verification.power import Spread, detectable_gain

TASKS = 4 + SEEDS * 2 * 5
CLAIMS = ("F1(a)", "F1(b)", "F1(c)", "F2(a)", "F2(b)")
PROBES = (ScaleProbe("segmentation", 32), ScaleProbe("knn", 32, "cls"))
ROUNDING = 2e-5
"""Percentage points: torchmetrics divides in float32."""


def test_every_task_is_done_and_judged(found):
    assert found.finished
    assert len(found.plan) == TASKS
    assert (found.plan["minutes"] == 0).all()
    assert not found.left_out
    names = [(finding.name, finding.subject) for finding in found.findings]
    paper = "paper against standard"
    assert names == [
        *[(claim, variant) for claim in CLAIMS for variant in ("standard", "paper")],
        ("F3", paper),
        ("F4", paper),
        ("F5", "norms against standard"),
        ("F6", paper),
    ]
    for finding in found.findings:
        assert finding.scale
        assert finding.rule
        if finding.name not in ("F4", "F5"):
            assert finding.seeds == SEEDS
    assert "24 images, 6 steps of 8" in next(f for f in found.findings if f.name == "F3").scale


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
        "start/MANIFEST.json",
    ):
        assert name in files
    assert not [name for name in files if name.endswith((".ckpt", ".safetensors"))], "they are in their own manifests"
    loaded = Verification.load(found.path)
    assert loaded.findings == found.findings
    pd.testing.assert_frame_equal(loaded.numbers, found.numbers)
    pd.testing.assert_frame_equal(loaded.effects, found.effects, check_dtype=False)


def test_models_of_one_seed_share_everything_but_the_specialization(found):
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in (found.path / "runs").iterdir()}
    for seed in range(SEEDS):
        one, other = (runs[f"{variant}_seed{seed}"] for variant in ("standard", "paper"))
        assert one["recipe"] | {"specialization": "paper"} == other["recipe"]
        assert one["data"] == other["data"]
        assert other["parameters"]["model"] > one["parameters"]["model"]
    assert {run["recipe"]["seed"] for run in runs.values()} == set(range(SEEDS))


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

    def differences(*measurement):
        return np.array([rows["paper", s, *measurement] - rows["standard", s, *measurement] for s in range(SEEDS)])

    dense = np.mean([differences("segmentation", "patches", size) for size in (32, 64)], axis=0)
    finding = next(finding for finding in found.findings if finding.name == "F3")
    assert finding.effect == pytest.approx(np.mean(dense), abs=ROUNDING)
    over_seeds, over_images = np.var(dense, ddof=1) / SEEDS, np.var(drawn_differences(found.path), ddof=1)
    error = math.sqrt(over_seeds + over_images)
    half = stats.t.ppf(0.975, (SEEDS - 1) * error**4 / over_seeds**2) * error
    assert finding.interval == pytest.approx((np.mean(dense) - half, np.mean(dense) + half), abs=ROUNDING)
    whole = found.effects[found.effects["cell"] == "mean"].set_index(["variant", "against", "measure"])
    assert whole.loc[("paper", "standard", "mIoU"), "difference"] == pytest.approx(np.mean(dense), abs=ROUNDING)
    accuracy, losses = differences("knn", "cls", 32), differences("training", "loss", 32)
    assert whole.loc[("paper", "standard", "accuracy"), "difference"] == pytest.approx(np.mean(accuracy))
    assert whole.loc[("paper", "standard", "loss"), "difference"] == pytest.approx(np.mean(losses), rel=1e-4)
    changes = 100 * (knn_hits(found.path, "paper") - knn_hits(found.path, "standard"))
    correlation = np.corrcoef(dense, accuracy)[0, 1] if dense.std() > 0 and accuracy.std() > 0 else 0.0
    deviations = (np.std(dense, ddof=1), np.std(accuracy, ddof=1))
    spread = Spread(SEEDS, deviations, correlation, (over_images, np.var(changes, ddof=1) / len(changes)))
    assert finding.detectable == pytest.approx(detectable_gain(spread), abs=1e-3)


def drawn_differences(folder):
    """Differences of mean IoU between paper and standard over bootstrap draws of the test images, from the files."""
    random = np.random.RandomState(0)
    counts = np.array([np.bincount(random.randint(0, 6, 6), minlength=6) for _ in range(2000)])
    sums = {"standard": 0.0, "paper": 0.0}
    for variant in sums:
        for seed in range(SEEDS):
            for size in (32, 64):
                pixels = pd.read_csv(folder / "probes" / f"{variant}_seed{seed}_segmentation_{size}" / "per_image.csv")
                hit, labelled, predicted = (
                    counts @ pixels[[f"{what}: {label}" for label in ("ground", "sky", "thing")]].to_numpy()
                    for what in ("hit", "labelled", "predicted")
                )
                with np.errstate(invalid="ignore"):
                    iou = np.where(labelled > 0, hit / (labelled + predicted - hit), np.nan)
                sums[variant] = sums[variant] + 100 * np.nanmean(iou, axis=1) / (2 * SEEDS)
    return sums["paper"] - sums["standard"]


def test_f1_is_that_of_the_analyses(found):
    for variant in ("standard", "paper"):
        analyses = [Analysis.load(found.path / "analyses" / f"{variant}_seed{seed}") for seed in range(SEEDS)]
        for number, claim in enumerate(CLAIMS):
            judged = [judge(analysis)[number] for analysis in analyses]
            assert {each.name for each in judged} == {claim}
            verdicts = {each.verdict for each in judged}
            effects = [each.effect for each in judged if each.effect is not None]
            [finding] = [each for each in found.findings if (each.name, each.subject) == (claim, variant)]
            assert finding.verdict == (verdicts.pop() if len(verdicts) == 1 else "inconclusive")
            assert finding.effect == (pytest.approx(np.mean(effects), rel=1e-5, abs=1e-6) if effects else None)


@pytest.mark.slow
def test_with_shuffled_labels_and_masks_f3_is_not_supported(tmp_path):
    shuffled = tiny_data(tmp_path / "data", shuffled=True)
    scale = tiny_scale(probes=PROBES, analyzed_images=2)
    found = verify(scale, shuffled, seeds=SEEDS, out=tmp_path / "toy", report=False)
    assert next(f for f in found.findings if f.name == "F3").verdict == "not applicable"
    assert judge_f3(found.numbers, found.numbers["setting"].iloc[0]).verdict in ("not supported", "inconclusive")


@pytest.mark.slow
def test_two_standard_models_of_different_seeds_do_not_support_f3(data, start, copy):
    variants = ["standard", "twin"]
    found = verify(tiny_scale(), data, seeds=SEEDS, variants=variants, start=start, out=copy, report=False)
    twins = found.numbers[found.numbers["variant"] == "twin"]
    assert set(twins["seed"]) == set(range(SEEDS))
    assert set(twins["preset"]) == {"standard"}
    seeds = {json.loads(file.read_text())["recipe"]["seed"] for file in copy.glob("runs/twin_seed*/run.json")}
    assert not seeds & set(range(SEEDS)), "a twin has its own seed"
    control = next(finding for finding in found.findings if finding.subject == "twin against standard")
    assert control.verdict == "not applicable"
    assert "two sets of weights" not in control.sentence, "a twin has one"
    setting = found.numbers["setting"].iloc[0]
    judged = judge_f3(found.numbers, setting, "twin").verdict
    assert judged in ("not supported", "inconclusive")
    named = found.numbers[found.numbers["variant"] != "paper"].replace({"variant": {"twin": "paper"}})
    assert judge_f3(named, setting).verdict == judged


def test_only_missing_tasks_are_done(found, data, start, copy):
    shutil.rmtree(copy / "probes" / "paper_seed1_knn_cls_32")
    shutil.rmtree(copy / "probes" / "start_knn_cls_32")
    shutil.rmtree(copy / "analyses" / "standard_seed0")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.parent != copy}
    titles = []

    def note(title, *_):
        titles.append(title)

    again = verify(tiny_scale(), data, seeds=SEEDS, start=start, out=copy, report=False, progress=note)
    tasks = ("1 of 3: probe knn_cls_32: start", "2 of 3: analyze: standard, seed 0")
    tasks = (*tasks, "3 of 3: probe knn_cls_32: paper, seed 1")
    assert [title for title in dict.fromkeys(titles) if title.count(":") == 2] == list(tasks)
    assert all(title.startswith(tasks) for title in titles)
    assert f"{tasks[2]}: features of the test images" in titles
    pd.testing.assert_frame_equal(again.numbers, found.numbers)
    pd.testing.assert_frame_equal(again.continued, found.continued)
    assert again.findings == found.findings
    assert again.finished
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_it_stops_in_time_and_resumes(data, tmp_path):
    out = tmp_path / "toy"
    scale = tiny_scale(probes=PROBES[1:], analyzed_images=2)
    arguments = {"seeds": 1, "variants": ["standard"], "out": out, "report": False}
    first = verify(scale, data, **arguments, max_minutes=1e-9)
    assert not first.finished
    assert (first.plan["state"] == "open").all()
    middle = verify(scale, data, **arguments, max_minutes=0.02)
    assert not (out / "MANIFEST.json").exists() or middle.finished
    for _ in range(8):
        last = verify(scale, data, **arguments, max_minutes=0.1)
        if last.finished:
            break
    assert last.finished
    assert (out / "MANIFEST.json").exists()
    assert all(finding.verdict == "inconclusive" for finding in last.findings if finding.name not in ("F2", "F4"))


def test_one_task_of_an_array(data, start, tmp_path):
    out = tmp_path / "toy"
    arguments = {"scale": tiny_scale(probes=PROBES[1:]), "data": data, "seeds": 1, "start": start, "out": out}
    verify(**arguments, task=0)
    assert [path.name for path in (out / "analyses").iterdir()] == ["start"], "the start needs no training"
    verify(**arguments, task=3, report=False)
    assert [path.name for path in (out / "runs").iterdir()] == ["paper_seed0"]
    with pytest.raises(ValueError, match="needs the finished training"):
        verify(**arguments, task=4)
    with pytest.raises(LookupError, match="tasks 0 to 7, got 9"):
        verify(**arguments, task=9)
