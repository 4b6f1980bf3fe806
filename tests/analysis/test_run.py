"""The table of one pass: its intervals end where the quantities do."""

from __future__ import annotations

import numpy as np

import tokenlens
from tests.metrics import _cases
from tokenlens.metrics import BOUNDS, metrics


def test_intervals_end_where_the_quantity_does():
    chosen = ["attention_mass", "attention_entropy", "cls_patch_cosine", "norm_differentiation", "token_norm"]
    table = tokenlens.analyze(_cases.model("registers"), _cases.images("registers"), metrics=chosen).table
    table = table[table["ci_low"].notna()]
    difference = (table["metric"] == "norm_differentiation") & ~table["part"].isin(["before", "after"])
    for unit, (lowest, highest) in BOUNDS.items():
        rows = table[(table["unit"] == unit) & ~difference]
        assert len(rows)
        assert (rows["ci_low"] >= np.minimum(lowest, rows["value"])).all(), unit
        assert (rows["ci_high"] <= np.maximum(highest, rows["value"])).all(), unit
    assert (table.loc[table["metric"] == "attention_mass", "ci_low"] == 0).any()  # shares near 0 of few images
    bounds = metrics.get("norm_differentiation")().bounds_of
    assert (bounds("before"), bounds("total")) == ((-1, 1), (-2, 2))
