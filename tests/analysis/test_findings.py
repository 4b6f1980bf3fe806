"""Verdicts of the five claims of F1 and F2 on one analysis."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.findings import judge
from tokenlens.analysis.rules import ABOUT_ZERO, MIN_FALL, MIN_IMAGES, RULES, TITLES

CLAIMS = list(TITLES)


def judged(analysis):
    return {finding.name: finding for finding in judge(analysis)}


def verdicts(analysis):
    return {name: finding.verdict for name, finding in judged(analysis).items()}


def shift(analysis, offset, **where):
    """Move some numbers at norm1, intervals included."""
    table = analysis.table
    rows = table["site"] == "norm1"
    for column, values in where.items():
        rows &= table[column].isin(values if isinstance(values, list) else [values])
    assert rows.any()
    table.loc[rows, ["value", "ci_low", "ci_high"]] += offset
    return analysis


def differentiation(analysis, offset, group, parts):
    return shift(analysis, offset, metric="norm_differentiation", group=group, part=parts)


def profile(analysis, offset, part):
    return shift(analysis, offset, metric="energy_profile", part=part)


@pytest.mark.parametrize("rms", [False, True])
def test_a_model_that_differentiates_supports_all(rms):
    # Patch–patch goes from .5–.25 by .18, so it keeps half; CLS–patch is above 0.1 in nearly all blocks.
    analysis = differentiation(synthetic_analysis(rms=rms), 0.1, "patch-patch", ["before", "after"])
    found = judged(analysis)
    assert {name: finding.verdict for name, finding in found.items()} == dict.fromkeys(CLAIMS, "supported")
    assert "blocks (of 12)" in found["F1(a)"].sentence
    assert ("centring" in found["F1(a)"].sentence) != rms
    assert "more than after random rotations" in found["F2(a)"].sentence
    assert "80 % of the fall" in found["F2(b)"].sentence
    for name, finding in found.items():
        low, high = finding.interval
        assert low < finding.effect < high, name
        assert (finding.rule, finding.title, finding.n) == (RULES[name], TITLES[name], 64)


def test_random_weights_support_nothing_whatever_their_numbers():
    for differentiates in (True, False):
        for finding in judge(synthetic_analysis(untrained=True, differentiates=differentiates)):
            assert finding.verdict == "not applicable"
            assert finding.sentence.startswith("Untrained model (random weights)")


@pytest.mark.parametrize("n", [1, 2, MIN_IMAGES - 1])
def test_a_few_images_are_not_enough(n):
    for finding in judge(synthetic_analysis(n=n)):
        assert finding.verdict == "inconclusive"
        assert f"a verdict needs {MIN_IMAGES}" in finding.sentence
        assert "nan" not in finding.sentence
        assert (finding.interval is None) == (n == 1 or finding.name == "F2(b)"), finding


def test_a_model_without_cls_is_not_asked():
    for finding in judge(synthetic_analysis(groups=("reg", "patch"))):
        assert finding.verdict == "not applicable"
        assert "no [CLS] token" in finding.sentence
        assert finding.effect is None


def test_a_post_norm_model_is_not_asked():
    analysis = synthetic_analysis()
    table, cosines = analysis.table, analysis.table["metric"].isin(["cls_patch_cosine", "patch_patch_cosine"])
    normed = table.loc[cosines & (table["site"] == "norm1"), "value"]
    table.loc[cosines & (table["site"] == "attn_out"), "value"] = normed.to_numpy()
    assert all("post-norm" in finding.sentence for finding in judge(analysis))


def test_numbers_that_were_not_computed_give_no_verdict():
    analysis = synthetic_analysis()
    analysis.table = analysis.table[analysis.table["metric"] == "cka"]
    for finding in judge(analysis):
        assert finding.verdict == "inconclusive"
        assert "was not computed" in finding.sentence


def test_where_cls_is_apart_already_a_fall_is_not_asked_for():
    # The fall is there, so the patches are judged all the same.
    analysis = differentiation(synthetic_analysis(), -0.4, "cls-patch", ["before", "after"])
    found = judged(analysis)
    assert found["F1(a)"].verdict == "not applicable"
    assert f"apart before norm1 already (cosine below {ABOUT_ZERO}) in 12 of 12 blocks" in found["F1(a)"].sentence
    assert found["F1(b)"].verdict == "supported"


def test_a_third_of_the_blocks_is_enough():
    for kept, expected in ((4, "supported"), (3, "not applicable")):
        analysis = differentiation(synthetic_analysis(), 0.1, "cls-patch", ["before"])
        rows = (analysis.table["part"] == "before") & (analysis.table["group"] == "cls-patch")
        analysis.table.loc[rows & (analysis.table["block"] >= kept), "value"] = 0.0
        assert verdicts(analysis)["F1(a)"] == expected


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("F1(a)", lambda a: differentiation(a, 0.6, "cls-patch", ["before", "after"])),  # does not end about 0
        ("F1(a)", lambda a: differentiation(a, -0.4, "cls-patch", ["total"])),  # does not fall
        ("F1(a)", lambda a: differentiation(a, -0.2, "cls-patch", ["gamma", "beta"])),  # falls by centring alone
        ("F1(b)", lambda a: differentiation(a, -0.7, "patch-patch", ["after"])),
        ("F1(c)", lambda a: differentiation(a, -0.2, "patch-patch", ["after"])),
        ("F2(a)", lambda a: profile(a, -0.25, "above_rotated")),  # below the floor
        ("F2(a)", lambda a: profile(a, 0.4, "rotated_95")),  # within the rotations
        ("F2(b)", lambda a: profile(a, -0.4, "fall_share")),  # less than half
        ("F2(b)", lambda a: profile(a, 0.9, "random_95")),  # as much as in random channels
    ],
)
def test_each_condition_is_needed(claim, change):
    assert (
        verdicts(change(differentiation(synthetic_analysis(), 0.3, "cls-patch", ["before"])))[claim] == "not supported"
    )


def test_a_norm_that_changes_nothing_does_not():
    analysis = differentiation(synthetic_analysis(differentiates=False), 0.3, "cls-patch", ["before", "after"])
    found = verdicts(analysis)
    assert [found[name] for name in ("F1(a)", "F2(a)")] == ["not supported", "not supported"]
    # Nothing to ask about the patches, or about the place of a fall.
    assert [found[name] for name in ("F1(b)", "F1(c)", "F2(b)")] == ["not applicable"] * 3


def test_the_place_of_a_fall_is_asked_for_only_where_there_are_such_channels():
    assert verdicts(profile(synthetic_analysis(), -0.3, "above_rotated"))["F2(b)"] == "not applicable"


@pytest.mark.parametrize("width", [2.0, np.nan])
def test_intervals_that_straddle_a_threshold_or_are_missing_are_inconclusive(width):
    analysis = synthetic_analysis()
    rows = analysis.table["metric"].isin(["norm_differentiation", "energy_profile"])
    analysis.table.loc[rows, "ci_low"] -= width
    analysis.table.loc[rows, "ci_high"] += width
    found = judged(analysis)
    for name in ("F1(a)", "F1(b)", "F1(c)", "F2(a)"):
        assert found[name].verdict == "inconclusive"
        assert "nan" not in found[name].sentence
    assert (found["F1(a)"].interval is None) == np.isnan(width)


def test_the_trend_with_depth_is_told():
    analysis = synthetic_analysis()
    rows = (analysis.table["metric"] == "norm_differentiation") & (analysis.table["part"] == "total")
    depth = 0.02 * analysis.table.loc[rows, "block"].fillna(0).astype(float)
    for column in ("value", "ci_low", "ci_high"):
        analysis.table.loc[rows, column] += depth
    assert "grows with depth" in judged(analysis)["F1(a)"].sentence
    assert "too few for a trend" in judged(synthetic_analysis(blocks=1))["F1(a)"].sentence
    assert str(MIN_FALL) in RULES["F1(a)"]


@pytest.mark.pretrained
def test_real_dinov2():
    """Recorded with 64 photographs (timm 1.0.31, torch 2.14.1)."""
    data = os.environ.get("TOKENLENS_TEST_DATA")
    if not data:
        pytest.skip("TOKENLENS_TEST_DATA does not point to real weights and photographs")
    from tokenlens.analysis.analyze import analyze

    analysis = analyze(
        "vit_small_patch14_dinov2",
        Path(data) / "photos",
        limit=64,
        img_size=224,
        checkpoint=Path(data) / "weights" / "dinov2_vits14.safetensors",
        metrics=["norm_differentiation", "energy_profile"],
    )
    found = judged(analysis)
    expected = dict.fromkeys(CLAIMS, "supported") | {"F1(c)": "not supported"}
    assert {name: finding.verdict for name, finding in found.items()} == expected
    assert found["F1(a)"].effect == pytest.approx(0.34, abs=0.04)
