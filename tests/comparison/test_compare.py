"""A comparison agrees with SciPy and plain arithmetic, and claims no difference where there is none."""

# Shapes: N images, S series.

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tokenlens
from tests.metrics._cases import images, model
from tests.metrics.cka import debiased_cka
from tests.support.run_folders import forge
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison
from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.compare import compare
from tokenlens.comparison.comparison import DIFFERENCES, SUMMARY, Comparison
from tokenlens.comparison.numbers import nearest_blocks
from tokenlens.comparison.similarity import COLUMNS as SIMILARITY
from tokenlens.images import ImageWarning
from tokenlens.metrics import NamedArray
from tokenlens.storage.result import Result
from tokenlens.storage.run_folder import MANIFEST

FRAMES = ("table", "differences", "summary", "similarity")


@cache
def analysis(name: str = "registers", metrics: str | None = None, keep_images: int = 4096) -> Analysis:
    return tokenlens.analyze(model(name), images(name), metrics=metrics, keep_images=keep_images)


@cache
def real() -> Comparison:
    """Two tiny models on the same eight photographs."""
    return compare(analysis("layer"), analysis("registers"))


def shuffled(run: Analysis, order: list[int]) -> Analysis:
    """The same analysis as if it had met its images in another order, or only some of them."""
    told = run.provenance["images"]
    images = told | {name: [told[name][i] for i in order] for name in ("names", "hashes")} | {"count": len(order)}
    arrays = {
        name: replace(array, values=array.values[order]) if "features" in name else array
        for name, array in run.arrays.items()
    }
    provenance = run.provenance | {"images": images}
    return replace(run, per_image=run.per_image.iloc[order], arrays=arrays, provenance=provenance)


def row(found: pd.DataFrame, **key: object) -> pd.Series:
    for name, wanted in key.items():
        found = found[found[name].isna() if wanted is None else found[name] == wanted]
    assert len(found) == 1
    return found.iloc[0]


# -- no difference where there is none


@pytest.mark.parametrize("batch_size", [8, 3])
def test_a_model_and_itself_are_equal(batch_size):
    found = compare(analysis(), tokenlens.analyze(model("registers"), images("registers"), batch_size=batch_size))
    assert found.pairing[found.others[0]].paired
    assert (found.differences["p"].dropna() == 1).all()
    assert not found.differences["significant"].any()
    assert not found.summary["significant"].any()
    if batch_size == 8:
        assert (found.differences["difference"].dropna() == 0).all()
        np.testing.assert_allclose(found.similarity["value"], 1)


def test_different_models_differ():
    found = real()
    assert found.differences["significant"].mean() > 0.1
    assert found.summary["significant"].iloc[0]
    known = found.summary[found.summary["significant"]]["effect"].abs()
    assert known.is_monotonic_decreasing
    assert found.summary["significant"].is_monotonic_decreasing


# -- which numbers meet


def test_a_number_is_the_mean_of_its_images():
    found, runs = real(), (analysis("registers"), analysis("layer"))
    place = {"metric": "attention_mass", "part": "", "block": 1, "site": "pattern", "group": "cls-patch"}
    # per head: first the mean over heads of each image
    values = [run.per_image.astype(float).T.xs(tuple(place.values()), level=(0, 1, 2, 3, 4)).mean() for run in runs]
    got = row(found.differences, **place)
    expected = stats.ttest_rel(*values)
    assert got["difference"] == pytest.approx((values[0] - values[1]).mean())
    assert got["p"] == pytest.approx(expected.pvalue)
    assert (got["test"], got["n"], got["unit"]) == ("paired t", 8, "share")


def test_a_summary_is_the_mean_over_blocks_of_each_image():
    found, runs = real(), (analysis("registers"), analysis("layer"))
    place = {"metric": "cls_patch_cosine", "part": "", "site": "norm1", "group": "cls-patch"}
    values = [run.per_image.astype(float).T.xs(tuple(place.values()), level=(0, 1, 3, 4)).mean() for run in runs]
    got = row(found.summary, **place)
    assert got["difference"] == pytest.approx((values[0] - values[1]).mean())
    assert got["p"] == pytest.approx(stats.ttest_rel(*values).pvalue)


def test_numbers_of_the_whole_set_are_tested_by_their_intervals():
    found = real().differences
    whole = found[found["metric"] == "cls_cls_cosine"]
    assert set(whole["test"]) <= {"intervals", ""}
    assert "intervals" in set(whole["test"])
    assert whole["effect"].isna().all()
    assert "cls_cls_cosine" not in set(real().summary["metric"])


def test_the_table_has_all_rows_of_all_models_with_their_depth():
    found = real()
    table = found.table
    assert list(table.columns[:2]) == ["label", "model"]
    assert len(table) == sum(len(run.table) for run in found.analyses.values())
    assert (table["depth"].dropna() > 0).all()
    assert (table["depth"].dropna() <= 1).all()
    assert (table[table["site"] == "final_norm"]["depth"] == 1).all()
    assert table[table["block"].isna() & (table["site"] != "final_norm")]["depth"].isna().all()
    assert set(table[table["block"] == 0]["depth"]) == {0.25}
    assert len(found.select("cka", label=found.labels[0], block=1)) == 1
    with pytest.raises(LookupError, match="no 'nonsense'; it has"):
        found.select("nonsense")


@pytest.mark.parametrize(("blocks", "other"), [(6, 12), (12, 6), (12, 12), (24, 7), (1, 5), (5, 1)])
def test_blocks_meet_by_relative_depth(blocks, other):
    matched = nearest_blocks(blocks, other)
    depth, other_depth = ((np.arange(count) + 0.5) / count for count in (blocks, other))
    distance = np.abs(depth[:, None] - other_depth[None])
    np.testing.assert_allclose(distance[np.arange(blocks), matched], distance.min(1))
    assert (np.diff(matched) >= 0).all()
    if blocks > 1:
        assert matched[-1] == other - 1


def test_models_of_different_depth_are_compared_block_by_block():
    found = synthetic_comparison(models=3)
    shallow = found.differences[(found.differences["label"] == found.labels[2]) & found.differences["block"].notna()]
    assert set(zip(shallow["block"], shallow["baseline_block"], strict=True)) == {(b, 2 * b + 1) for b in range(6)}
    np.testing.assert_allclose(shallow["depth"], (shallow["block"].astype(float) + 0.5) / 6)
    got = row(shallow, metric="cls_patch_cosine", block=2, site="norm1")
    base = row(found.analyses[found.baseline].table, metric="cls_patch_cosine", block=5, site="norm1")
    assert got["baseline_value"] == pytest.approx(base["value"], rel=1e-5)


def test_only_numbers_that_both_have():
    found = compare(analysis("layer"), analysis("no_cls"))
    assert {"cls_patch_cosine", "cka"}.isdisjoint(found.differences["metric"])
    assert "patch_patch_cosine" in set(found.differences["metric"])
    assert "cka does not apply: the model has no [CLS] token" in found.similarity_note


def test_columns():
    for found in (real(), synthetic_comparison(models=3), synthetic_comparison(n=1)):
        assert list(found.differences.columns) == list(DIFFERENCES)
        assert list(found.summary.columns) == list(SUMMARY)
        assert list(found.similarity.columns) == list(SIMILARITY)
        assert set(found.differences["test"]) <= {"paired t", "Welch", "intervals", ""}
        assert (found.differences["p"].notna() == (found.differences["test"] != "")).all()


# -- pairing


MIXED = [3, 1, 0, 2, 7, 6, 5, 4]


@pytest.mark.parametrize(
    ("order", "pair", "reason", "n"),
    [
        (range(8), None, "the same 8 images, paired by image", 8),
        (range(8), False, "the same 8 images: compared unpaired as requested", 0),
        (MIXED, None, "the same 8 images in another order: compared unpaired; pass pair=True (--pair)", 0),
        (MIXED, True, "8 images in common (of 8), paired by image", 8),
        ([5, 2, 6], None, "3 of 3 and 8 images in common: compared unpaired; pass pair=True", 0),
        ([5, 2, 6], True, "3 images in common (of 3 and 8), paired by image", 3),
    ],
)
def test_which_images_pair(order, pair, reason, n):
    found = compare(analysis("layer"), shuffled(analysis(), list(order)), pair=pair)
    (pairing,) = found.pairing.values()
    assert pairing.reason.startswith(reason)
    assert pairing.paired == (n > 0)
    assert set(found.differences["test"]) == {"paired t" if n else "Welch", "intervals", ""}
    assert set(found.differences.loc[found.differences["test"] == "paired t", "n"]) == ({n} if n else set())
    if len(order) == 8:
        np.testing.assert_allclose(found.similarity["value"], real().similarity["value"], atol=1e-9)
    if n == 8:
        numbers = ["difference", "ci_low", "p", "effect"]
        np.testing.assert_allclose(found.differences[numbers], real().differences[numbers], rtol=1e-6, atol=1e-12)


def test_another_image_size_is_said():
    other = replace(analysis(), provenance=analysis().provenance | {"image_size": [64, 64]})
    (pairing,) = compare(analysis("layer"), other).pairing.values()
    assert pairing.reason == "the same 8 images, paired by image, at input sizes of 64×64 and 32×32 pixels"


def test_no_images_in_common():
    told = analysis().provenance["images"] | {"hashes": [f"other {i}" for i in range(8)]}
    other = replace(analysis(), provenance=analysis().provenance | {"images": told})
    found = compare(analysis("layer"), other)
    assert found.pairing[found.others[0]].reason == "0 of 8 images in common: compared unpaired"
    assert found.similarity.empty
    assert "0 images in common" in found.similarity_note
    with pytest.raises(ValueError, match=r"cannot be paired with .*: 0 of 8 images in common"):
        compare(analysis("layer"), other, pair=True)


def test_fewer_images_kept_than_seen():
    """Pairs are of the kept images; unpaired means and spreads are of all."""
    few = analysis("registers", keep_images=5)
    (pairing,) = compare(analysis("layer"), few).pairing.values()
    assert pairing.reason == "the same 8 images, paired by image over the 5 whose numbers were kept"
    found = compare(analysis("layer"), few, pair=False).differences
    got = row(found, metric="cls_patch_cosine", block=0, site="norm1")
    expected = row(few.table, metric="cls_patch_cosine", block=0, site="norm1")
    assert (got["n"], got["value"]) == (8, expected["value"])
    per_head = row(found, metric="attention_mass", block=0, group="cls-cls")
    assert (per_head["n"], per_head["n_baseline"]) == (5, 8)
    (pairing,) = compare(analysis("layer"), analysis("layer", "cls_patch_cosine", keep_images=0)).pairing.values()
    assert "no values by image: compared unpaired" in pairing.reason


# -- likeness of features


def test_similarity_is_debiased_cka_of_the_final_features():
    found = real()
    features = {
        label: [run.arrays[f"cka/{group}_features"].values.astype(float) for group in ("cls", "patch")]
        for label, run in found.analyses.items()
    }
    for i, group in enumerate(("cls", "patch")):
        x, y = (features[label][i] for label in found.labels)
        for pair in (found.labels, found.labels[::-1]):
            got = row(found.similarity, label_1=pair[0], label_2=pair[1], group=group)
            assert got["value"] == pytest.approx(debiased_cka(x, y), abs=1e-9)
            assert got["ci_low"] < got["value"] < got["ci_high"]
            assert got["n"] == 8


def test_the_features_are_what_leaves_the_final_norm():
    recording = tokenlens.record(model("registers"), images("registers"), limit=None)
    tokens = recording[None, "final_norm"]
    np.testing.assert_allclose(analysis().arrays["cka/cls_features"].values, tokens[:, 0], rtol=1e-5, atol=1e-5)
    patch = tokens[:, 4:].mean(1)
    np.testing.assert_allclose(analysis().arrays["cka/patch_features"].values, patch, rtol=1e-5, atol=1e-5)


def test_turned_features_are_alike():
    generator = np.random.default_rng(0)
    arrays = dict(analysis().arrays)
    for group in ("cls", "patch"):
        array = arrays[f"cka/{group}_features"]
        rotation = np.linalg.qr(generator.normal(size=(array.values.shape[1],) * 2))[0]
        arrays[f"cka/{group}_features"] = NamedArray(3 * array.values @ rotation, array.dims, array.unit)
    found = compare(analysis(), replace(analysis(), arrays=arrays))
    np.testing.assert_allclose(found.similarity["value"], 1, atol=1e-6)


def test_runs_without_features_still_compare():
    arrays = {name: array for name, array in analysis().arrays.items() if "features" not in name}
    old = replace(analysis(), arrays=arrays)
    found = compare(analysis("layer"), old)
    assert found.similarity.empty
    assert "analyze the model again" in found.similarity_note
    assert found.differences["significant"].any()
    three = compare(analysis("layer"), old, analysis(), labels=["a", "b", "c"])
    assert set(three.similarity["label_1"]) == {"a", "c"}
    assert three.similarity_note.startswith("b has no features")
    assert "cka was not computed" in compare(analysis(), analysis("layer", "token_norm")).similarity_note


# -- saved and loaded


def same(one: Comparison, two: Comparison) -> None:
    assert (one.labels, one.baseline, one.pair, one.pairing) == (two.labels, two.baseline, two.pair, two.pairing)
    assert (one.provenance, one.similarity_note) == (two.provenance, two.similarity_note)
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name), check_exact=True)


@pytest.fixture
def folder(tmp_path):
    return real().save(tmp_path / "run", report=False)


def test_a_comparison_comes_back_as_it_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["tokenlens.analysis.analyze"], "load_model", None)
    monkeypatch.setattr("tokenlens.analysis.run.open_images", None)
    loaded = Comparison.load(folder)
    same(loaded, real())
    assert loaded.save(tmp_path / "again", report=False) == tmp_path / "again"
    same(Comparison.load(tmp_path / "again"), real())
    assert isinstance(Result.load(folder), Comparison)
    three = compare(analysis("layer"), analysis(), analysis(), labels=["x/y", "x y", "x:y"], baseline="x y", pair=False)
    three.save(tmp_path / "three", report=False)
    same(Comparison.load(tmp_path / "three"), three)


def test_what_is_in_the_folder(folder):
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    runs = {
        f"runs/{name}/{file}"
        for name in ("0_VisionTransformer", "1_VisionTransformer_2")
        for file in ("analysis.json", "table.csv", "arrays.safetensors")
    }
    assert files == runs | {"comparison.json", MANIFEST, *(f"{name}.csv" for name in FRAMES)}
    told = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert told["kind"] == "comparison"
    assert told["pairing"][real().others[0]]["reason"] == "the same 8 images, paired by image"
    assert set(real().provenance) == {"versions", "command", "commit", "started", "seconds"}
    written = pd.read_csv(folder / "differences.csv", keep_default_na=False, na_values={"difference": ""})
    np.testing.assert_allclose(written["difference"], real().differences["difference"])


def test_the_report_is_part_of_it(tmp_path, monkeypatch):
    def report(comparison: Comparison, folder: Path) -> None:
        (folder / "report.html").write_text(comparison.baseline)

    monkeypatch.setattr("tokenlens.report.write_report", report)
    real().save(tmp_path / "run")
    assert "report.html" in json.loads((tmp_path / "run" / MANIFEST).read_text())["files"]
    with pytest.raises(FileExistsError, match="overwrite"):
        real().save(tmp_path / "run", report=False)
    real().save(tmp_path / "run", overwrite=True, report=False)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_changed_or_newer_comparison_is_refused(folder):
    member = "runs/0_VisionTransformer/table.csv"
    content = (folder / member).read_bytes()
    (folder / member).write_bytes(content.replace(b"0", b"1", 1))
    with pytest.raises(ValueError, match=f"{member} was changed"):
        Comparison.load(folder)
    (folder / member).write_bytes(content)
    forge(folder, "comparison.json", '"schema_version": 1', '"schema_version": 99')
    with pytest.raises(ValueError, match="newer tokenlens"):
        Comparison.load(folder)
    forge(folder, "comparison.json", '"schema_version": 99', '"schema_version": 1')
    forge(folder, "comparison.json", "runs/0_VisionTransformer", "../elsewhere")
    with pytest.raises(ValueError, match="does not list"):
        Comparison.load(folder)
    (folder / "comparison.json").write_text("{}")
    with pytest.raises(ValueError, match=r"comparison\.json was changed"):
        Comparison.load(folder)


def test_the_two_kinds_of_runs_are_told_apart(folder, tmp_path):
    analysis("layer").save(tmp_path / "analysis", report=False)
    with pytest.raises(ValueError, match="of kind 'comparison', expected 'analysis'"):
        Analysis.load(folder)
    with pytest.raises(ValueError, match="of kind 'analysis', expected 'comparison'"):
        Comparison.load(tmp_path / "analysis")
    assert isinstance(Result.load(tmp_path / "analysis"), Analysis)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        Result.load(tmp_path / "nowhere")


# -- what is compared


def test_labels_tell_the_models_apart(tmp_path):
    for name in ("one", "two"):
        analysis("layer").save(tmp_path / name, report=False)
    untrained = replace(analysis(), provenance=analysis().provenance | {"untrained": True})
    found = compare(tmp_path / "one", analysis(), str(tmp_path / "two"), untrained, tmp_path / "two")
    name = "VisionTransformer"
    assert found.labels == [f"{name} · one", name, f"{name} · two", f"{name} (untrained)", f"{name} · two #2"]
    assert found.baseline == f"{name} · one"
    assert compare(analysis(), analysis()).labels == [name, f"{name} #2"]


def test_the_baseline_is_a_position_or_a_label():
    for baseline in (1, "b"):
        found = compare(analysis("layer"), analysis(), labels=["a", "b"], baseline=baseline)
        assert (found.baseline, found.others) == ("b", ["a"])
    np.testing.assert_allclose(found.differences["difference"], -real().differences["difference"], atol=1e-12)
    found = compare(synthetic_analysis(), synthetic_analysis(untrained=True), labels=["A", "B"], baseline="B")
    assert found.labels == ["A", found.baseline] == ["A", "B (untrained)"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["a"]}, "one label per subject"),
        ({"labels": ["a", "a"]}, "labels must differ"),
        ({"labels": ["a", ""]}, "labels must differ and not be empty"),
        ({"labels": ["a", "b"], "baseline": "c"}, "no model is labelled 'c'; the labels are 'a', 'b'"),
        ({"baseline": 2}, "position from 0 to 1, got 2"),
        ({"images": "sample"}, "images only applies to models that are analyzed, but all 2 subjects are saved runs"),
        ({"limit": 3}, "limit only applies to models"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises((ValueError, LookupError), match=message):
        compare(analysis("layer"), analysis(), **settings)


def test_subjects_that_do_not_do(tmp_path):
    with pytest.raises(ValueError, match="at least two runs or models, got 1"):
        compare(analysis())
    with pytest.raises(LookupError, match="'nowhere' is neither a run folder nor a model: no model is called"):
        compare(analysis(), "nowhere")
    with pytest.raises(FileNotFoundError, match="no run folder"):
        compare(analysis(), tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        compare(analysis(), str(tmp_path / "half"))
    with pytest.raises(ValueError, match="expected an Analysis, a run folder, a model's name or a module, got int"):
        compare(analysis(), 3)


def test_models_without_a_common_number():
    with pytest.raises(ValueError, match="no number in common; their metrics are cka and token_norm"):
        compare(analysis("layer", "token_norm"), analysis("layer", "cka"))


def test_copies_of_an_image_pair_once():
    pixels = images("layer", 8)
    subjects = []
    for name in ("layer", "registers"):
        with pytest.warns(ImageWarning, match="3 images are copies of others"):
            subjects.append(tokenlens.analyze(model(name), pixels[[0, 1, 1, 2, 3, 4, 0, 5, 5]], metrics="token_norm"))
    found = compare(*subjects)
    (pairing,) = found.pairing.values()
    assert (pairing.paired, pairing.n) == (True, 6)
    assert set(found.differences["n"]) == {6}


def test_undefined_numbers_are_no_differences():
    table = analysis().table.copy()
    table[["value", "sd", "ci_low", "ci_high"]] = np.nan
    empty = replace(analysis(), table=table, per_image=analysis().per_image * np.nan)
    for pair in (None, False):
        found = compare(analysis(), empty, pair=pair)
        assert found.differences["difference"].isna().all()
        assert set(found.differences["test"]) == {""}
        assert not found.differences["significant"].any()
        assert not found.summary["significant"].any()


def test_models_are_analyzed_on_the_images_of_the_first_run(tmp_path):
    run = tokenlens.analyze("test_vit", "sample", pretrained=False, img_size=64, limit=4, seed=3, metrics="token_norm")
    run.save(tmp_path / "run")
    found = compare(tmp_path / "run", "test_vit", pretrained=False, metrics="token_norm")
    assert found.labels == ["test_vit (untrained) · run", "test_vit (untrained)"]
    made = found.analyses[found.labels[1]]
    assert made.provenance["images"]["hashes"] == run.provenance["images"]["hashes"]
    assert (made.provenance["image_size"], made.provenance["seed"]) == ([64, 64], 3)
    assert (found.differences["difference"] == 0).all()  # the seed makes the same random weights
    options = {"pretrained": False, "metrics": "token_norm", "images": "sample", "limit": 4, "seed": 4}
    other = compare(tmp_path / "run", "test_vit", **options)
    assert "0 of 4 images in common" in other.pairing[other.labels[1]].reason


def test_images_that_cannot_be_had_again():
    with pytest.raises(ValueError, match=r"cannot be found again \(tensor 8×3×32×32\)"):
        compare(analysis("layer"), model("registers"))
    found = compare(analysis("layer"), model("registers"), images=images("registers"))
    assert found.pairing[found.others[0]].paired


def test_how_it_shows_itself():
    many = f"{real().differences['significant'].sum()} of {len(real().differences)}"
    assert repr(real()).startswith(
        f"Comparison(baseline VisionTransformer; VisionTransformer #2: {many} numbers differ, paired"
    )


@pytest.mark.pretrained
def test_a_random_twin_is_plainly_different():
    if not os.environ.get("TOKENLENS_TEST_DATA"):
        pytest.skip("TOKENLENS_TEST_DATA does not point to real weights and photographs")
    data = Path(os.environ["TOKENLENS_TEST_DATA"])
    options = {"images": data / "photos", "limit": 8, "img_size": 112}
    name = "vit_small_patch14_dinov2"
    trained = tokenlens.analyze(name, checkpoint=data / "weights" / "dinov2_vits14.safetensors", **options)
    found = compare(trained, tokenlens.analyze(name, pretrained=False, **options))
    assert found.labels[1].endswith("(untrained)")
    tested = found.differences[found.differences["test"] != ""]
    assert tested["significant"].mean() > 0.8
    falls = row(found.summary, metric="norm_differentiation", part="total", site="norm1", group="cls-patch")
    assert falls["significant"]
    assert falls["effect"] < -3
    apart = found.similarity[found.similarity["label_1"] != found.similarity["label_2"]]
    assert (apart["value"] < 0.5).all()
