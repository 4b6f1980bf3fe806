"""Select the numbers of a comparison that a figure draws, or raise NothingToDraw with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._rows import as_list, choose_rows, separate_elements
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import Canvas, images_text

TESTED = ("p", "q", "n", "n_baseline", "test", "unit", "significant")
"""The last columns of a frame of differences."""


def numbers_of(comparison: Comparison) -> dict[str, int]:
    """Return the index of each label in the comparison."""
    return {label: number for number, label in enumerate(comparison.labels)}


def rows_of_models(
    comparison: Comparison,
    metric: str,
    *,
    parts: str | Sequence[str] | None = None,
    sites: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the comparison's rows of one metric, with the columns ``model_number`` and ``left_out``.

    ``left_out`` lists the models without such rows, with the reasons.

    Raises:
        NothingToDraw: if fewer than two models have such rows.
    """
    everything = comparison.table[comparison.table["metric"] == metric]
    rows = choose_rows(everything, metric, parts=parts, sites=sites, groups=groups)
    have = [label for label in comparison.labels if (rows["label"] == label).any()]
    names = [group_title(name) for name in as_list(groups or [])] or as_list(sites or parts or [])
    reasons = []
    for label in comparison.labels:
        because = comparison.analyses[label].not_applicable.get(metric) or f"{metric} not computed"
        if (everything["label"] == label).any():
            because = f"no {', '.join(names)}"
        if label not in have:
            reasons.append(f"{label}: {because}")
    if len(have) < 2:
        raise NothingToDraw(f"fewer than two models have {metric}: {'; '.join(reasons)}")
    rows = separate_elements(rows.copy(), metric)
    rows.insert(1, "model_number", rows["label"].map(numbers_of(comparison)))
    rows["left_out"] = "; ".join(reasons)
    return rows.reset_index(drop=True)


def shared_rows(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows whose values in the given columns occur for at least two models.

    Raises:
        NothingToDraw: if there are none.
    """
    kept = rows[rows.groupby(list(columns), sort=False)["label"].transform("nunique") >= 2]
    if kept.empty:
        metric = ", ".join(dict.fromkeys(rows["metric"]))
        raise NothingToDraw(f"no two models have numbers of {metric} at the same {' and '.join(columns)}")
    return kept.reset_index(drop=True)


def comparison_note(page: Canvas, frame: pd.DataFrame, note: str) -> None:
    """Write n, the kind of test, a note and the models left out at the top of a comparison's figure."""
    n = images_text(frame["n"]) if "n" in frame else ""
    tests = _texts(frame, "test")
    how = {"paired t": "paired by image", "Welch": "unpaired", "intervals": "from intervals"}
    pairing = ", ".join(how.get(test, test) for test in tests)
    out = "; ".join(_texts(frame, "left_out"))
    page.note(" · ".join(filter(None, [n, pairing, note, f"left out: {out}" if out else ""])))


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    """Return the different texts in a column, without empty ones."""
    return [text for text in dict.fromkeys(frame.get(column, ())) if isinstance(text, str) and text]
