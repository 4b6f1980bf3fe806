"""The whole model in a few numbers, computed from an analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.statistics.moments import Moments

OVERVIEW_COLUMNS = ("quantity", "value", "ci_low", "ci_high", "n", "unit", "block", "head")


def overview(analysis: Analysis) -> pd.DataFrame:
    """Return a few numbers that describe the whole model, one row each.

    Means over blocks are taken image by image, so their 95 % t interval is over images. ``block`` and ``head`` locate
    an extreme; its interval does not account for having been selected.

    Returns:
        A frame with the columns of ``OVERVIEW_COLUMNS``, without metrics that are missing or do not apply.
    """
    rows: list[dict[str, Any]] = []
    metric = "norm_differentiation"
    for site in ("norm1", "norm2"):
        for pair, what in (("cls-patch", "CLS–patch"), ("patch-patch", "patch–patch")):
            for part, verb in (
                ("total", f"mean fall of {what} cosine across {site}"),
                ("centring", f"… of which centring ({what}, {site})"),
                ("gamma", f"… of which the weight γ ({what}, {site})"),
                ("beta", f"… of which the bias β ({what}, {site})"),
                ("total_own", f"… of which specialized γ and β of CLS ({what}, {site})"),
            ):
                rows += _over_blocks(analysis, verb, metric, part=part, site=site, group=pair)
        largest = f"largest fall of CLS–patch cosine across {site}"
        rows += _extreme(analysis, largest, metric, "max", part="total", site=site, group="cls-patch")
    rows += _extreme(analysis, "most CLS attention to patches", "attention_mass", "max", group="cls-patch")
    rows += _extreme(analysis, "most patch attention to CLS", "attention_mass", "max", group="patch-cls")
    rows += _extreme(analysis, "most focused CLS attention", "attention_entropy", "min", part="normalized")
    specific = "most channels specific to one group, after norm1"
    rows += _extreme(analysis, specific, "dimension_selectivity", "max", part="output_share", site="norm1")
    frame = pd.DataFrame(rows, columns=list(OVERVIEW_COLUMNS))
    return frame.astype({"block": "Int64", "head": "Int64", "n": "Int64"})


def mean_fall(analysis: Analysis) -> pd.DataFrame:
    """Return the row of ``overview`` with the mean fall of the CLS–patch cosine across norm1; empty without one."""
    key = {"part": "total", "site": "norm1", "group": "cls-patch"}
    rows = _over_blocks(analysis, "mean fall of CLS–patch cosine across norm1", "norm_differentiation", **key)
    return pd.DataFrame(rows, columns=list(OVERVIEW_COLUMNS))


def _over_blocks(analysis: Analysis, quantity: str, metric: str, **key: str) -> list[dict[str, Any]]:
    """Average a per-image number over blocks, with its interval over images."""
    if metric not in analysis.metrics or not analysis.per_image.shape[1]:
        return []
    columns = analysis.per_image.columns
    chosen = columns.get_level_values("metric") == metric
    for level, wanted in key.items():
        chosen &= columns.get_level_values(level) == wanted
    if not chosen.any():
        return []
    moments = Moments()
    moments.update(analysis.per_image.loc[:, chosen].mean(axis=1).to_numpy(dtype=np.float64)[:, None])
    (low,), (high,) = moments.interval()
    unit = analysis.select(metric, **key)["unit"].iloc[0]
    row = (quantity, moments.mean[0], low, high, int(moments.n[0]), unit, None, None)
    return [dict(zip(OVERVIEW_COLUMNS, row, strict=True))]


def _extreme(analysis: Analysis, quantity: str, metric: str, which: str, **key: str) -> list[dict[str, Any]]:
    """Find the block or head with the largest or smallest number."""
    if metric not in analysis.metrics:
        return []
    found = analysis.select(metric, **key).dropna(subset="value")
    if found.empty:
        return []
    row = found.loc[found["value"].idxmax() if which == "max" else found["value"].idxmin()]
    return [{"quantity": quantity} | {column: row[column] for column in OVERVIEW_COLUMNS[1:]}]
