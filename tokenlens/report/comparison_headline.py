"""The difference between models in one sentence: how far the norm before attention pulls [CLS] from the patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from tokenlens.comparison.comparison import Comparison
from tokenlens.report.headline import NORM
from tokenlens.report.main_differences import F1, difference_texts
from tokenlens.storage.tables import select_rows


class ComparisonHeadline(NamedTuple):
    """A sentence, and a line with the differences and what they rest on."""

    sentence: str
    facts: str


def comparison_headline(comparison: Comparison) -> ComparisonHeadline | None:
    """Return the sentence that a comparison's page begins with; None if the models share no number for F1(a)."""
    rows = list(select_rows(comparison.summary, **F1).itertuples(index=False))
    if not rows:
        return None
    baseline = comparison.baseline
    if len(rows) == 1:
        row = rows[0]
        value, reference = difference_texts(row)["value"], difference_texts(row)["baseline"]
        falls = f"the cosine falls by {value} against {reference}"
        return ComparisonHeadline(f"{_relation(row, baseline)}: {falls}.", _facts(row))
    texts = [f"{difference_texts(rows[0])['baseline']} in {baseline}"]
    texts += [f"{difference_texts(row)['value']} in {row.label}" for row in rows]
    sentence = f"Across {NORM}, the cosine of [CLS] and patches falls by {', '.join(texts[:-1])} and {texts[-1]}."
    return ComparisonHeadline(sentence, " · ".join(f"{row.label}: {_facts(row)}" for row in rows))


def _relation(row: Any, baseline: str) -> str:
    """Return how two models compare, as far as the test says."""
    if pd.isna(row.p) or not row.significant:
        how = "No test of" if pd.isna(row.p) else "No significant difference in"
        return f"{how} how far {NORM} pulls [CLS] away from the patches in {row.label} and in {baseline}"
    more = "more" if row.value > row.baseline_value else "less"
    return f"In {row.label}, {NORM} pulls [CLS] away from the patches {more} than in {baseline}"


def _facts(row: Any) -> str:
    texts = difference_texts(row)
    parts = [f"difference {texts['difference']}"]
    parts += [f"95 % interval {texts['95 % interval']}"] if texts["95 % interval"] else []
    parts += [f"q {texts['q']}" if texts["q"].startswith("<") else f"q = {texts['q']}"] if texts["q"] else []
    n = f"n = {row.n}" if row.n == row.n_baseline else f"n = {row.n} and {row.n_baseline}"
    return ", ".join([*parts, f"{n}, means over blocks"])
