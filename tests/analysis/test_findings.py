"""Verdicts of F1 and F2 on one analysis."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.findings import ABOUT_ZERO, CHANCE_SHARE, MIN_FALL, MIN_IMAGES, judge, selective_share


def verdicts(analysis):
    return [finding.verdict for finding in judge(analysis)]


def shifted(analysis, offset, *, group, parts):
    """The same analysis with some numbers moved, intervals included."""
    table = analysis.table
    rows = (table["metric"] == "norm_differentiation") & (table["site"] == "norm1")
    rows &= (table["group"] == group) & table["part"].isin(parts)
    table.loc[rows, ["value", "ci_low", "ci_high"]] += offset
    return analysis


@pytest.mark.parametrize("rms", [False, True])
def test_a_model_that_differentiates_supports_both(rms):
    first, second = judge(synthetic_analysis(rms=rms))
    assert (first.verdict, second.verdict) == ("supported", "supported")
    assert "falls in 12 of 12 blocks" in first.sentence
    assert "of the 384 channels" in second.sentence
    assert first.n == second.n == 64
    for finding in (first, second):
        low, high = finding.interval
        assert low < finding.effect < high
        assert str(MIN_FALL) in finding.rule


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
        assert (finding.interval is None) == (n == 1)


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


@pytest.mark.parametrize(
    ("finding", "offset", "group", "parts"),
    [
        (0, 0.6, "cls-patch", ["before", "after"]),  # the cosine does not end about zero
        (0, -0.5, "patch-patch", ["before", "after"]),  # the patches do not stay alike
        (0, 0.5, "patch-patch", ["before", "total"]),  # the patches fall more
        (1, -0.3, "cls-patch", ["gamma", "beta"]),  # the weights do not lower the cosine
    ],
)
def test_each_condition_is_needed(finding, offset, group, parts):
    found = judge(shifted(synthetic_analysis(), offset, group=group, parts=parts))
    assert found[finding].verdict == "not supported"
    assert str(ABOUT_ZERO) in found[0].rule


def test_a_norm_that_changes_nothing_does_not():
    assert verdicts(synthetic_analysis(differentiates=False)) == ["not supported", "not supported"]


def test_intervals_that_straddle_a_threshold_are_inconclusive():
    analysis = synthetic_analysis()
    rows = (analysis.table["metric"] == "norm_differentiation") & (analysis.table["group"] == "cls-patch")
    analysis.table.loc[rows, "ci_low"] -= 1
    analysis.table.loc[rows, "ci_high"] += 1
    assert verdicts(analysis) == ["inconclusive", "inconclusive"]


def with_magnitudes(analysis, cls, patch):
    """The same analysis with other mean magnitudes at norm1's output, (block, channel)."""
    for group, values in (("cls", cls), ("patch", patch)):
        name = f"dimension_selectivity/{group}_output_norm1"
        analysis.arrays[name] = replace(analysis.arrays[name], values=values)
    return analysis


def magnitudes(analysis):
    return (analysis.arrays[f"dimension_selectivity/{group}_output_norm1"].values for group in ("cls", "patch"))


def test_f2_needs_more_selective_channels_than_chance():
    analysis = synthetic_analysis()
    _, patch = magnitudes(analysis)
    cls = np.abs(np.random.default_rng(0).normal(size=patch.shape))
    finding = judge(with_magnitudes(analysis, cls, np.ones_like(patch)))[1]
    assert finding.verdict != "supported"
    assert f"chance {100 * CHANCE_SHARE:.0f} %" in finding.sentence
    nothing = judge(with_magnitudes(analysis, np.ones_like(patch), np.ones_like(patch)))[1]
    assert nothing.verdict == "not supported"


def test_f2_does_not_take_a_common_scale_for_selective_channels():
    """CLS with nearly all of its length in five channels is smaller than the patches in all others."""
    analysis = synthetic_analysis()
    _, patch = magnitudes(analysis)
    cls = 0.1 * np.ones_like(patch)
    cls[:, :5] = 50.0
    analysis.table.loc[analysis.table["part"] == "output_share", ["value", "ci_low", "ci_high"]] = [0.99, 0.98, 1.0]
    finding = judge(with_magnitudes(analysis, cls, np.ones_like(patch)))[1]
    assert finding.verdict == "not supported"
    assert "1 % in CLS, 0 % in patches" in finding.sentence
    assert "with that scale 99 %" in finding.sentence


def test_f2_is_the_same_whatever_the_scale_of_a_group():
    analysis = synthetic_analysis()
    cls, patch = magnitudes(analysis)
    assert judge(with_magnitudes(analysis, 0.01 * cls, patch))[1] == judge(synthetic_analysis())[1]


def test_chance_is_what_a_random_cls_gives():
    rng = np.random.default_rng(0)
    cls = np.abs(rng.normal(size=(1, 200_000)))
    patch = np.abs(rng.normal(size=(400, 1))).mean() * np.ones_like(cls)
    assert sum(selective_share(cls, patch))[0] == pytest.approx(CHANCE_SHARE, abs=0.01)


def test_the_trend_with_depth_is_told():
    analysis = synthetic_analysis()
    rows = (analysis.table["metric"] == "norm_differentiation") & (analysis.table["part"] == "total")
    depth = 0.02 * analysis.table.loc[rows, "block"].fillna(0).astype(float)
    for column in ("value", "ci_low", "ci_high"):
        analysis.table.loc[rows, column] += depth
    assert "grows with depth" in judge(analysis)[0].sentence
    assert "too few for a trend" in judge(synthetic_analysis(blocks=1))[0].sentence


@pytest.mark.pretrained
def test_real_dinov2_differentiates():
    """Recorded with 16 photographs: F1 in 10 of 12 blocks (timm 1.0.31, torch 2.15)."""
    data = os.environ.get("TOKENLENS_TEST_DATA")
    if not data:
        pytest.skip("TOKENLENS_TEST_DATA does not point to real weights and photographs")
    from tokenlens.analysis.analyze import analyze

    analysis = analyze(
        "vit_small_patch14_dinov2",
        Path(data) / "photos",
        limit=16,
        img_size=224,
        checkpoint=Path(data) / "weights" / "dinov2_vits14.safetensors",
        metrics=["norm_differentiation", "dimension_selectivity"],
    )
    first, second = judge(analysis)
    assert (first.verdict, second.verdict) == ("supported", "not supported")
    assert "clearly falls in 12 of 12 blocks" in first.sentence
    assert first.effect == pytest.approx(0.31, abs=0.04)
