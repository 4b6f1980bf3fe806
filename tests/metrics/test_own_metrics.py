"""Metrics of one's own, handed over as classes or instances beside the names of those that the package has."""

# Shapes: B images, P patches.

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import tokenlens
from tests.metrics import _cases
from tests.metrics._cases import images
from tokenlens.metrics.base import RESIDUAL_SITES, RawTokenMetric, RawTokens, TokenMetric, Values
from tokenlens.metrics.cls_patch_cosine import CLSPatchCosine
from tokenlens.reduction.summaries import TokenSummary


class LongPatches(TokenMetric):
    """Share of patches longer than some length."""

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
    """The largest absolute value of a patch, on average; from the tokens themselves."""

    name = "largest_channel"
    unit: ClassVar = {"patch_mean": "activation"}
    sites = ("norm1", "final_norm")

    def per_image(self, summary: RawTokens) -> Values:
        return {("patch_mean", "patch"): summary.patch.abs().amax(-1).mean(-1)}


def analyzed(metrics: object) -> tokenlens.Analysis:
    return tokenlens.analyze(_cases.model("registers"), images("registers"), metrics=metrics)


def recorded() -> tokenlens.Recording:
    return tokenlens.record(_cases.model("registers"), images("registers"))


def patches(recording: tokenlens.Recording, block: int | None, site: str) -> Tensor:
    return recording.layout.patches_of(recording[block, site])


def test_they_stand_in_the_table_beside_the_others():
    analysis = analyzed(["token_norm", LongPatches, LargestChannel()])
    assert set(analysis.metrics) == {"token_norm", "long_patches", "largest_channel"}
    recording = recorded()
    for metric, of_BP in {
        "long_patches": lambda x_BPD: (x_BPD.norm(dim=-1) > 5).double(),
        "largest_channel": lambda x_BPD: x_BPD.abs().amax(-1),
    }.items():
        rows = analysis.select(metric)
        assert len(rows)
        for row in rows.itertuples():
            block = None if pd.isna(row.block) else row.block
            by_image_B = of_BP(patches(recording, block, row.site)).mean(-1)
            assert row.value == pytest.approx(float(by_image_B.mean()), rel=1e-5, abs=1e-7)
            assert row.n == len(by_image_B)
    assert set(analysis.select("largest_channel")["unit"]) == {"activation"}


def test_they_do_not_change_the_numbers_of_the_others():
    alone = analyzed(["token_norm", "cls_patch_cosine"])
    beside = analyzed([LargestChannel, "token_norm", LongPatches, "cls_patch_cosine"])
    for metric in alone.metrics:
        pd.testing.assert_frame_equal(alone.select(metric), beside.select(metric))


def test_an_instance_keeps_its_arguments_and_can_be_handed_over_again():
    recording = recorded()
    typical = float(patches(recording, 1, "resid_post").norm(dim=-1).median())
    metric = LongPatches(typical)
    first, again = analyzed(metric), analyzed([metric])
    value = first.select("long_patches", site="resid_post", block=1)["value"].item()
    assert value == pytest.approx(0.5, abs=0.02)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not metric.keys, "it was copied, and has seen nothing itself"


def test_a_comparison_takes_them():
    model = _cases.model("registers")
    comparison = tokenlens.compare(
        model, model, labels=["one", "same"], images=images("registers"), metrics=[LongPatches(4)]
    )
    assert set(comparison.differences["metric"]) == {"long_patches"}
    assert np.allclose(comparison.differences["difference"], 0)


def test_they_are_drawn_saved_and_loaded(tmp_path):
    analysis = analyzed([LongPatches])
    assert analysis.plot("depth_profile", metric="long_patches").axes
    loaded = tokenlens.Analysis.load(analysis.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(loaded.table, analysis.table)


def test_a_file_of_the_package_can_be_handed_over_as_its_class():
    pd.testing.assert_frame_equal(analyzed([CLSPatchCosine]).table, analyzed(["cls_patch_cosine"]).table)


def test_each_has_a_name_of_its_own():
    class Nameless(LongPatches):
        name = ""

    class Taken(LongPatches):
        name = "token_norm"

    class SubclassOfOurs(CLSPatchCosine):
        pass

    with pytest.raises(ValueError, match=r'Nameless has no name; state one in its class: name = "…"'):
        analyzed([Nameless])
    for metrics in ([Taken], [SubclassOfOurs], [LongPatches(1.0), LongPatches(2.0)]):
        with pytest.raises(ValueError, match="is taken"):
            analyzed(metrics)


@pytest.mark.parametrize("wrong", [torch.nn.Linear, 3.5, len])
def test_what_is_no_metric(wrong):
    with pytest.raises(ValueError, match="a metric is a name, a Metric class or an instance of one, got"):
        analyzed(["token_norm", wrong])
