"""The sentence that a report begins with: one for each verdict, and no more than the numbers say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.analysis import KEY_COLUMNS
from tokenlens.analysis.block_numbers import format_number
from tokenlens.analysis.findings import judge
from tokenlens.analysis.overview import overview
from tokenlens.report.headline import headline
from tokenlens.report.stage_shares import stage_shares

SMALL = {"blocks": 6, "heads": 2, "channels": 16}


def sentence_of(analysis):
    return headline(analysis, judge(analysis)[0]).sentence


def before_norm1(analysis, part, change):
    """Change the CLS-patch cosines of norm1 and their intervals."""
    table = analysis.table
    chosen = (table["metric"] == "norm_differentiation") & (table["site"] == "norm1") & (table["part"] == part)
    chosen &= table["group"] == "cls-patch"
    for column in ("value", "ci_low", "ci_high"):
        table.loc[chosen, column] = change(table.loc[chosen, column])
    return analysis


def with_falls_by_image(analysis):
    """Give each image its fall across norm1 in every block: the mean of the table, with a spread that adds up to 0."""
    falls = analysis.select("norm_differentiation", part="total", site="norm1", group="cls-patch")
    spread = np.linspace(-0.1, 0.1, analysis.images)[:, None]
    columns = [("norm_differentiation", "total", int(block), "norm1", "cls-patch", -1) for block in falls["block"]]
    analysis.per_image = pd.DataFrame(
        falls["value"].to_numpy()[None] + spread, columns=pd.MultiIndex.from_tuples(columns, names=list(KEY_COLUMNS))
    )
    return analysis


def test_a_norm_that_differentiates():
    analysis = with_falls_by_image(synthetic_analysis(**SMALL))
    found = headline(analysis, judge(analysis)[0])
    [row] = overview(analysis).query("quantity == 'mean fall of CLS–patch cosine across norm1'").itertuples()
    assert found.facts.endswith(f"95 % interval {format_number(row.ci_low)} to {format_number(row.ci_high)}")
    assert found.sentence.startswith("In vit_small_patch14_dinov2, the norm before attention pulls [CLS] away")
    assert "in all 6 blocks: cosine 0." in found.sentence
    assert " → −0." in found.sentence
    assert found.facts.startswith(
        "n = 64 images of 224 × 224 pixels · weights: dinov2.safetensors · mean over 6 blocks"
    )
    assert "95 % interval 0." in found.facts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"differentiates": False}, "does not pull [CLS] away from the patches: cosine"),
        ({"n": 4}, "On 4 images only, across the norm before attention of vit"),
        ({"untrained": True}, "Untrained control: across the norm before attention of vit"),
        ({"groups": ("reg", "patch")}, "vit_small_patch14_dinov2 has no [CLS] token"),
    ],
)
def test_what_is_not_shown_is_said(options, said):
    assert said in sentence_of(synthetic_analysis(**SMALL, **options))


def test_a_fall_that_ends_above_zero_and_one_by_centring_are_told_apart():
    high = before_norm1(synthetic_analysis(**SMALL), "after", lambda x: x + 0.6)
    high = before_norm1(high, "before", lambda x: x + 0.6)
    assert "pulls [CLS] away from the patches in all 6 blocks, but not to about 0" in sentence_of(high)
    centred = synthetic_analysis(**SMALL)
    for part in ("gamma", "beta"):
        centred = before_norm1(centred, part, lambda x: 0 * x)
    assert "move apart across the norm before attention, but not by its weights" in sentence_of(centred)


def test_tokens_that_are_apart_before_the_norm_and_numbers_that_are_missing():
    apart = before_norm1(synthetic_analysis(**SMALL), "before", lambda x: 0 * x)
    assert "are apart before the norm already in 6 of 6 blocks: cosine 0.00" in sentence_of(apart)
    without = synthetic_analysis(**SMALL)
    without.table = without.table[without.table["metric"] != "norm_differentiation"]
    assert sentence_of(without).startswith("Not measured: what the norms of vit_small_patch14_dinov2 do to [CLS]")
    assert stage_shares(without) is None


def test_shares_of_the_stages_add_up_to_the_fall():
    found = stage_shares(synthetic_analysis(**SMALL))
    assert [bar.text for bar in found.bars] == ["10 %", "60 %", "30 %"]
    assert found.zero == 0
    assert [fall.block for fall in found.falls] == list(range(6))
    assert max(fall.height for fall in found.falls) == 100
    small = stage_shares(synthetic_analysis(**SMALL, differentiates=False))
    assert "too small for shares" in small.note
    assert [bar.title for bar in stage_shares(synthetic_analysis(**SMALL, rms=True)).bars] == ["weight γ"]
