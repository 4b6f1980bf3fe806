"""Metrics of users, passed as classes or instances beside names of the catalogue."""

# Shapes: B images, P patches.

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import tokenlens
from tests.metrics import _cases
from tests.metrics._cases import images
from tokenlens.metrics import RESIDUAL_SITES, NormMetric, RawTokenMetric, RawTokens, TokenMetric, Values
from tokenlens.metrics.cls_patch_cosine import CLSPatchCosine
from tokenlens.reduction.summaries import TokenSummary


class LongPatches(TokenMetric):
    """Share of patches with a norm above some value."""

    name = "long_patches"
    title = "share of long patches"
    unit = "share"
    sites = RESIDUAL_SITES

    def __init__(self, length: float = 5.0) -> None:
        super().__init__()
        self.length = length

    def per_image(self, summary: TokenSummary) -> Values:
        return {("", "patch"): (summary.norms_of("patch") > self.length).double().mean(-1)}


class LargestChannel(RawTokenMetric):
    """Mean over patches of the largest absolute value of a channel."""

    name = "largest_channel"
    unit: ClassVar = {"patch_mean": "activation"}
    sites = ("norm1", "final_norm")

    def per_image(self, summary: RawTokens) -> Values:
        return {("patch_mean", "patch"): summary.patch.abs().amax(-1).mean(-1)}


def analyzed(metrics: object) -> tokenlens.Analysis:
    return tokenlens.analyze(_cases.model("registers"), images("registers"), metrics=metrics)


@cache
def recorded() -> tokenlens.Recording:
    return tokenlens.record(_cases.model("registers"), images("registers"))


def test_they_are_in_the_table():
    analysis = analyzed(["token_norm", LongPatches, LargestChannel()])
    assert set(analysis.metrics) == {"token_norm", "long_patches", "largest_channel"}
    layout = recorded().layout
    for metric, of_BP in {
        "long_patches": lambda x_BPD: (x_BPD.norm(dim=-1) > 5).double(),
        "largest_channel": lambda x_BPD: x_BPD.abs().amax(-1),
    }.items():
        rows = analysis.select(metric)
        assert len(rows)
        for row in rows.itertuples():
            block = None if pd.isna(row.block) else row.block
            by_image_B = of_BP(layout.patches_of(recorded()[block, row.site])).mean(-1)
            assert row.value == pytest.approx(float(by_image_B.mean()), rel=1e-5, abs=1e-7)
            assert row.n == len(by_image_B)
    assert set(analysis.select("largest_channel")["unit"]) == {"activation"}


def test_they_do_not_change_the_numbers_of_the_others_nor_does_a_class_for_a_name():
    alone = analyzed(["token_norm", "cls_patch_cosine"])
    beside = analyzed([LargestChannel, "token_norm", LongPatches, "cls_patch_cosine"])
    for metric in alone.metrics:
        pd.testing.assert_frame_equal(alone.select(metric), beside.select(metric))
    pd.testing.assert_frame_equal(analyzed([CLSPatchCosine]).table, alone.select("cls_patch_cosine"))


def test_an_instance_keeps_its_arguments_and_can_be_used_again():
    typical = recorded().layout.patches_of(recorded()[1, "resid_post"]).norm(dim=-1).median()
    metric = LongPatches(float(typical))
    first, again = analyzed(metric), analyzed([metric])
    value = first.select("long_patches", site="resid_post", block=1)["value"].item()
    assert value == pytest.approx(0.5, abs=0.02)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not metric.keys, "analyze used a copy"


def test_a_comparison_takes_them():
    models = [_cases.model("registers")] * 2
    comparison = tokenlens.compare(*models, images=images("registers"), metrics=[LongPatches(4)])
    assert set(comparison.differences["metric"]) == {"long_patches"}
    assert np.allclose(comparison.differences["difference"], 0)


def test_they_are_drawn_saved_and_loaded(tmp_path):
    analysis = analyzed([LongPatches])
    assert analysis.plot("depth_profile", metric="long_patches").axes
    loaded = tokenlens.Analysis.load(analysis.save(tmp_path / "run", report=False))
    pd.testing.assert_frame_equal(loaded.table, analysis.table)


def test_each_needs_a_unique_name():
    class Nameless(LongPatches):
        name = ""

    class Taken(LongPatches):
        name = "token_norm"

    class SubclassOfOurs(CLSPatchCosine):
        pass

    with pytest.raises(ValueError, match=r'Nameless has no name; set one in its class: name = "…"'):
        analyzed([Nameless])
    for metrics in ([Taken], [SubclassOfOurs], [LongPatches(1.0), LongPatches(2.0)]):
        with pytest.raises(ValueError, match="is taken"):
            analyzed(metrics)


@pytest.mark.parametrize("wrong", [torch.nn.Linear, 3.5, len])
def test_other_objects_are_refused(wrong):
    with pytest.raises(ValueError, match="a metric must be a name, a Metric class or an instance of one, got"):
        analyzed(["token_norm", wrong])


def test_needs_add_to_those_of_the_base_class_and_unknown_ones_are_refused():
    assert type("Longer", (LongPatches,), {"needs": {"cls"}}).needs == {"cls"}
    assert type("Stages", (NormMetric,), {"needs": ("cls",)}).needs == {"cls", "norm_stages"}
    with pytest.raises(ValueError, match=r"Typo needs \['clss'\]; a metric can need cls, "):
        type("Typo", (LongPatches,), {"needs": ("clss",)})
