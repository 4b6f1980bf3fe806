"""Summarize the table of an analysis: one row per metric, part, site and group."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tokenlens.report.tables import Column, Table, TableEntry, number_column, table_of, text_column

_EXTREMES = ("lowest", "lowest_block", "lowest_head", "highest", "highest_block", "highest_head")
SUMMARY = ("metric", "part", "site", "group", "mean", *_EXTREMES, "n", "unit")


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over blocks and heads, and the extremes with their block and head.

    Args:
        table: the table of an analysis.

    Returns:
        A frame with the columns ``SUMMARY``. Block and head of the extremes are missing if there is only one value.
    """
    rows = []
    for keys, inside in table.groupby(["metric", "part", "site", "group"], sort=False):
        values = inside["value"].astype(float)
        row: dict[str, Any] = dict(zip(SUMMARY, keys, strict=False))
        row |= {"mean": values.mean(), "lowest": values.min(), "highest": values.max()}
        row |= {"n": int(inside["n"].max()), "unit": inside["unit"].iloc[0]}
        if values.notna().any() and len(inside) > 1:
            for extreme, index in (("lowest", values.idxmin()), ("highest", values.idxmax())):
                row |= {f"{extreme}_{kind}": inside.loc[index, kind] for kind in ("block", "head")}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(SUMMARY))
    return frame.astype({f"{which}_{kind}": "Int64" for which in ("lowest", "highest") for kind in ("block", "head")})


def summary_table(table: pd.DataFrame, title: str) -> Table:
    """Return the summary of an analysis' table for its page."""

    def extreme(which: str) -> Column:
        def entry(row: Any) -> TableEntry:
            numbers = [getattr(row, f"{which}_{kind}") for kind in ("block", "head")]
            at = " ".join(f"{kind}{number}" for kind, number in zip("bh", numbers, strict=True) if not pd.isna(number))
            return number_column(which)(row)._replace(small=at)

        return entry

    columns: dict[str, Column] = {name: text_column(name) for name in ("metric", "part", "site", "group")}
    columns |= {"mean": number_column("mean"), "lowest": extreme("lowest"), "highest": extreme("highest")}
    columns |= {"n": number_column("n", 9), "unit": text_column("unit")}
    return table_of(summarize(table), "summary", title, columns, ("mean", "lowest", "highest", "n"))
