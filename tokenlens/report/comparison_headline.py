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
        verb, (value, reference) = _falls([difference_texts(row)["value"], difference_texts(row)["baseline"]])
        return ComparisonHeadline(
            f"{_relation(row, baseline)}: the cosine {verb} {value} against {reference}.", _facts(row)
        )
    names = [baseline, *(row.label for row in rows)]
    verb, falls = _falls([difference_texts(rows[0])["baseline"], *(difference_texts(row)["value"] for row in rows)])
    texts = [f"{fall} in {name}" for fall, name in zip(falls, names, strict=True)]
    sentence = f"Across {NORM}, the cosine of [CLS] and patches {verb} {', '.join(texts[:-1])} and {texts[-1]}."
    return ComparisonHeadline(sentence, " · ".join(f"{row.label}: {_facts(row)}" for row in rows))


def _falls(texts: list[str]) -> tuple[str, list[str]]:
    """Return the verb for falls of a cosine, negative ones being rises, and the numbers that follow it."""
    if all(text.startswith("−") for text in texts):
        return "rises by", [text.removeprefix("−") for text in texts]
    return "falls by", texts


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
