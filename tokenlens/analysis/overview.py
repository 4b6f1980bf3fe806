"""Numbers of a whole model, computed from an analysis' table and per-image values: never measured separately."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.statistics.moments import Moments

COLUMNS = ("quantity", "value", "ci_low", "ci_high", "n", "unit", "block", "head")


def headlines(analysis: Analysis) -> pd.DataFrame:
    """A few numbers that describe the model as a whole, a row each.

    Means over blocks are taken image by image first, so their 95 % t interval is over images. ``block`` and ``head``
    say where an extreme lies; its interval is that of the cell and does not know that the cell was picked.

    Returns:
        A frame with the columns of ``COLUMNS``; rows whose metrics were not computed or do not apply are left out.
    """
    rows: list[dict[str, Any]] = []
    for site in ("norm1", "norm2"):
        for pair, what in (("cls-patch", "CLS–patch"), ("patch-patch", "patch–patch")):
            for part, verb in (
                ("total", f"mean fall of {what} cosine across {site}"),
                ("centring", f"… of which centring ({what}, {site})"),
                ("gamma", f"… of which the weight γ ({what}, {site})"),
                ("beta", f"… of which the bias β ({what}, {site})"),
                ("total_own", f"… of which CLS's own γ and β instead of the patches' ({what}, {site})"),
            ):
                rows += _over_blocks(analysis, verb, "norm_differentiation", part=part, site=site, group=pair)
        rows += _extreme(
            analysis,
            f"largest fall of CLS–patch cosine across {site}",
            "norm_differentiation",
            "max",
            part="total",
            site=site,
            group="cls-patch",
        )
    rows += _extreme(analysis, "most CLS attention to patches", "attention_mass", "max", group="cls-patch")
    rows += _extreme(analysis, "most patch attention to CLS", "attention_mass", "max", group="patch-cls")
    rows += _extreme(analysis, "most focused CLS attention", "attention_entropy", "min", part="normalized")
    rows += _extreme(
        analysis,
        "most channels specific to one group, after norm1",
        "dimension_selectivity",
        "max",
        part="output_share",
        site="norm1",
    )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"block": "Int64", "head": "Int64", "n": "Int64"})


def _over_blocks(analysis: Analysis, quantity: str, metric: str, **key: str) -> list[dict[str, Any]]:
    """Mean over blocks of a per-image number, with its interval over images."""
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
    low, high = moments.interval()
    unit = analysis.select(metric, **key)["unit"].iloc[0]
    return [
        {
            "quantity": quantity,
            "value": moments.mean[0],
            "ci_low": low[0],
            "ci_high": high[0],
            "n": int(moments.n[0]),
            "unit": unit,
            "block": None,
            "head": None,
        }
    ]


def _extreme(analysis: Analysis, quantity: str, metric: str, which: str, **key: str) -> list[dict[str, Any]]:
    """The cell with the largest or smallest number."""
    if metric not in analysis.metrics:
        return []
    found = analysis.select(metric, **key).dropna(subset="value")
    if found.empty:
        return []
    cell = found.loc[found["value"].idxmax() if which == "max" else found["value"].idxmin()]
    return [{"quantity": quantity} | {column: cell[column] for column in COLUMNS[1:]}]
