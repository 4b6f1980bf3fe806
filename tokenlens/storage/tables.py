"""Tidy tables: read them back exactly as they were written, and select rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COLUMNS = ("model", "metric", "part", "block", "site", "group", "head", "value", "sd", "n", "ci_low", "ci_high", "unit")
"""Columns of every tidy table of metrics. ``block`` and ``head`` count from 0; what does not apply is empty."""

TEXT_COLUMNS = ("model", "metric", "part", "site", "group", "unit")
COUNT_COLUMNS = ("block", "head", "n")


def read_table(
    path: Path, texts: Collection[str] = TEXT_COLUMNS, counts: Collection[str] = COUNT_COLUMNS
) -> pd.DataFrame:
    """Read a CSV file that ``DataFrame.to_csv`` wrote, with every number to its last digit.

    Args:
        path: the file.
        texts: columns of text; an empty cell is an empty string.
        counts: columns of whole numbers, ``Int64``; an empty cell is missing. Any other column is ``bool`` if it holds
            True and False only, ``int64`` if it holds whole numbers only, else ``float64`` with NaN for empty cells.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in table.columns:
        cells = table[name]
        if name in texts:
            continue
        if name in counts:
            table[name] = pd.array([int(cell) if cell else pd.NA for cell in cells], dtype="Int64")
        elif len(cells) and set(cells) <= {"True", "False"}:
            table[name] = cells == "True"
        elif len(cells) and all(cell.lstrip("-").isdigit() for cell in cells):
            table[name] = cells.astype("int64")
        else:
            # float() gives back the very number that was written; pandas' own parser does so in some versions only.
            table[name] = np.array([float(cell or "nan") for cell in cells], dtype=np.float64)
    return table


def select_rows(table: pd.DataFrame, **filters: Any) -> pd.DataFrame:
    """Return the rows that match every filter, e.g. ``select_rows(table, metric="cka", block=[0, 11])``.

    Args:
        table: a tidy table.
        filters: for each column one value or several.
    """
    for column, wanted in filters.items():
        values = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
        table = table[table[column].isin(values)]
    return table.reset_index(drop=True)
