"""What a comparison's page leads with: what differs most between two models, and whether it exceeds the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._rows import quantity_title
from tokenlens.report.numerals import aligned, counted, significant
from tokenlens.report.two_sets import counterparts

if TYPE_CHECKING:
    from tokenlens.comparison.comparison import Comparison

MOST = 5
"""So many differences are named, the largest one of each metric."""

DIFFERS, NOTHING, UNTESTED = "differs", "nothing beyond the noise", "not testable"

DIFFERENCE = ("value", "baseline", "difference", "95 % interval", "d", "q")
"""Headings of what is said of a difference."""

_TESTS = {
    "paired t": "Student's t over the differences image by image",
    "Welch": "Welch's t over images",
    "intervals": "numbers of the whole set by their jackknife intervals",
}
_THE_QUESTION = {"metric": "norm_differentiation", "part": "total", "site": "norm1", "group": "cls-patch"}


@dataclass(frozen=True)
class Lead:
    """What is said of one model against the baseline.

    Attributes:
        label: the model.
        verdict: ``DIFFERS``, ``NOTHING`` or ``UNTESTED``.
        sentences: how much differs and what differs most, with numbers.
        basis: on what images and by what tests.
        paired: whether the numbers were paired by image.
        reason: why, or why not.
        largest: rows of the largest differences that exceed the noise, at most ``MOST``, of as many metrics.
    """

    label: str
    verdict: str
    sentences: tuple[str, ...]
    basis: str
    paired: bool
    reason: str
    largest: pd.DataFrame


def leads(comparison: Comparison) -> list[Lead]:
    """A lead for each model but the baseline."""
    return [_lead(comparison, label) for label in comparison.others]


def _lead(comparison: Comparison, label: str) -> Lead:
    means = comparison.summary[comparison.summary["label"] == label]
    cells = comparison.differences[comparison.differences["label"] == label]
    found = means[means["significant"]]
    if found.empty:
        found = cells[cells["significant"]]
    tested = int(means["p"].notna().sum()), int(cells["p"].notna().sum())
    if not any(tested):
        verdict, sentences = UNTESTED, [_untested(cells)]
    elif found.empty:
        verdict, sentences = NOTHING, [_nothing(cells, tested)]
    else:
        verdict, sentences = DIFFERS, [_how_much(means, cells, tested, comparison.baseline)]
    largest = found.sort_values("effect", key=abs, ascending=False, kind="stable").drop_duplicates("metric").head(MOST)
    if verdict == DIFFERS:
        first = next(largest.itertuples(index=False))
        sentences.append(f"Most different: {quantity_title(first)}, with {_difference(first)}.")
    asked = means
    for column, wanted in _THE_QUESTION.items():
        asked = asked[asked[column] == wanted]
    for row in asked.itertuples(index=False):
        sentences.append(f"The fall of CLS–patch cosine across norm1, the paper's F1: {_difference(row)}.")
    sentences += _similarity(comparison, label)
    sentences += counterparts(comparison, label)
    pairing = comparison.pairing[label]
    ways = [_TESTS[test] for test in _TESTS if (cells["test"] == test).any()]
    reason = f"{pairing.reason[:1].upper()}{pairing.reason[1:]}"
    basis = f"{reason}."
    if ways:
        basis += f" Tests: {'; '.join(ways)}; q by Benjamini and Hochberg over {counted(tested[1], 'number')}."
    untested = len(cells) - tested[1]
    if untested and any(tested):
        basis += f" {counted(untested, 'number')} without a spread over images cannot be tested."
    return Lead(label, verdict, tuple(sentences), basis, pairing.paired, reason, largest)


def _how_much(means: pd.DataFrame, cells: pd.DataFrame, tested: tuple[int, int], baseline: str) -> str:
    return (
        f"{int(means['significant'].sum())} of {counted(tested[0], 'mean')} over blocks and "
        f"{int(cells['significant'].sum()):,} of {counted(tested[1], 'number')} of single blocks differ from "
        f"{baseline} by more than the noise (q < 0.05)."
    )


def _nothing(cells: pd.DataFrame, tested: tuple[int, int]) -> str:
    of = f"{counted(tested[0], 'mean')} over blocks and {counted(tested[1], 'number')} of single blocks"
    tests = cells[cells["p"].notna()]
    if (tests["p"] == 1).all():
        largest = float(tests["difference"].abs().max())
        return f"Nothing differs: {of} are the same to the metrics' exactness (largest difference {largest:.1g})."
    return f"Nothing exceeds the noise: of {of} none differs significantly (smallest q: {tests['q'].min():.2g})."


def _untested(cells: pd.DataFrame) -> str:
    n = int(min(cells["n"].min(), cells["n_baseline"].min()))
    have = "has" if n == 1 else "have"
    return f"No difference can be tested: {counted(n, 'image')} {have} no spread to hold it against."


def difference_cells(row: Any) -> dict[str, str]:
    """Value, baseline, difference, interval, d and q of a row of differences, by their headings."""
    numbers = aligned([row.value, row.baseline_value, row.difference], (row.ci_low, row.ci_high))
    bounds = f"{numbers[3]} to {numbers[4]}" if numbers[3] and numbers[4] else ""
    q = "" if pd.isna(row.q) else "< 0.001" if row.q < 0.001 else f"{row.q:.2g}"
    d = significant(float(row.effect), 3)
    return dict(zip(DIFFERENCE, [*numbers[:3], bounds, d, q], strict=True))


def _difference(row: Any) -> str:
    """One difference in words, with all that belongs to it."""
    value, baseline, difference, bounds, d, q = difference_cells(row).values()
    inside = [f"95 % interval {bounds}" if bounds else "no interval"]
    if q:
        inside.append(f"q {q}" if q.startswith("<") else f"q = {q}")
    if d:
        inside.append(f"d = {d}")
    inside.append(f"n = {row.n}" if row.n == row.n_baseline else f"n = {row.n} and {row.n_baseline}")
    if row.significant:
        return f"{value} instead of {baseline}, a difference of {difference} ({'; '.join(inside)})"
    if row.p == 1:
        return f"{value} in both"
    return f"{value} and {baseline}; the difference of {difference} does not exceed the noise ({'; '.join(inside)})"


def _similarity(comparison: Comparison, label: str) -> list[str]:
    """How alike the features are that the two models end with."""
    rows = comparison.similarity
    rows = rows[(rows["label_1"] == label) & (rows["label_2"] == comparison.baseline)]
    told = []
    for row in rows.itertuples(index=False):
        value, low, high = aligned([row.value], (row.ci_low, row.ci_high))
        what = {"cls": "CLS features", "patch": "mean-patch features"}.get(row.group, row.group)
        told.append(f"{value} between the {what}" + (f" ({low} to {high})" if low and high else ""))
    if not told:
        return []
    return [f"Final features, CKA (1: the images are arranged alike): {', '.join(told)}; n = {int(rows['n'].max())}."]
