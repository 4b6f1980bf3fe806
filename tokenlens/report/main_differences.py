"""State the largest differences between two models, and whether they are significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures.base import quantity_title
from tokenlens.report.number_format import aligned_numbers, with_digits
from tokenlens.report.specialized_weights import counterparts
from tokenlens.storage.tables import select_rows
from tokenlens.storage.wording import counted

MOST = 5
"""Number of differences listed, the largest one of each metric."""

DIFFERS, NOTHING, UNTESTED = "differs", "no significant difference", "not testable"

DIFFERENCE = ("value", "baseline", "difference", "95 % interval", "d", "q")
"""Headings of the numbers of a difference."""

_TESTS = {
    "paired t": "Student's t on the differences per image",
    "Welch": "Welch's t over images",
    "intervals": "jackknife intervals for numbers of the whole set",
}
F1 = {"metric": "norm_differentiation", "part": "total", "site": "norm1", "group": "cls-patch"}
"""The row of the summary that tells how far norm1 lowers the CLS–patch cosine."""


@dataclass(frozen=True)
class MainDifference:
    """The main differences between one model and the baseline.

    Attributes:
        label: the model.
        verdict: ``DIFFERS``, ``NOTHING`` or ``UNTESTED``.
        sentences: the amount and the largest of the differences, with numbers.
        basis: the images and tests that this is based on.
        paired: whether the numbers were paired by image.
        reason: why they were or were not paired.
        largest: rows of the largest significant differences, at most ``MOST``, one per metric.
    """

    label: str
    verdict: str
    sentences: tuple[str, ...]
    basis: str
    paired: bool
    reason: str
    largest: pd.DataFrame


def main_differences(comparison: Comparison) -> list[MainDifference]:
    """Return the main differences of each model other than the baseline."""
    return [_main_difference(comparison, label) for label in comparison.others]


def _main_difference(comparison: Comparison, label: str) -> MainDifference:
    means = comparison.summary[comparison.summary["label"] == label]
    blocks = comparison.differences[comparison.differences["label"] == label]
    found = means[means["significant"]]
    if found.empty:
        found = blocks[blocks["significant"]]
    tested = int(means["p"].notna().sum()), int(blocks["p"].notna().sum())
    if not any(tested):
        verdict, sentences = UNTESTED, [_untested(blocks)]
    elif found.empty:
        verdict, sentences = NOTHING, [_nothing(blocks, tested)]
    else:
        verdict, sentences = DIFFERS, [_counts(means, blocks, tested, comparison.baseline)]
    largest = found.sort_values("effect", key=abs, ascending=False, kind="stable").drop_duplicates("metric").head(MOST)
    if verdict == DIFFERS:
        first = next(largest.itertuples(index=False))
        sentences.append(f"Largest difference: {quantity_title(first)}, {_difference(first)}.")
    for row in select_rows(means, **F1).itertuples(index=False):
        sentences.append(f"Fall of the CLS–patch cosine across norm1 (F1): {_difference(row)}.")
    sentences += _similarity(comparison, label)
    sentences += counterparts(comparison, label)
    pairing = comparison.pairing[label]
    ways = [_TESTS[test] for test in _TESTS if (blocks["test"] == test).any()]
    reason = f"{pairing.reason[:1].upper()}{pairing.reason[1:]}"
    basis = f"{reason}."
    if ways:
        basis += f" Tests: {'; '.join(ways)}; q by Benjamini and Hochberg over {counted(tested[1], 'number')}."
    untested = len(blocks) - tested[1]
    if untested and any(tested):
        basis += f" {counted(untested, 'number')} without a spread over images cannot be tested."
    return MainDifference(label, verdict, tuple(sentences), basis, pairing.paired, reason, largest)


def _counts(means: pd.DataFrame, blocks: pd.DataFrame, tested: tuple[int, int], baseline: str) -> str:
    return (
        f"{int(means['significant'].sum())} of {counted(tested[0], 'mean')} over blocks and "
        f"{int(blocks['significant'].sum()):,} of {counted(tested[1], 'number')} for single blocks differ "
        f"significantly from {baseline} (q < 0.05)."
    )


def _nothing(blocks: pd.DataFrame, tested: tuple[int, int]) -> str:
    of = f"{counted(tested[0], 'mean')} over blocks and {counted(tested[1], 'number')} for single blocks"
    tests = blocks[blocks["p"].notna()]
    if (tests["p"] == 1).all():
        largest = float(tests["difference"].abs().max())
        return f"Nothing differs: {of} agree within the metrics' accuracy (largest difference {largest:.1g})."
    return f"None of {of} differ significantly (smallest q: {tests['q'].min():.2g})."


def _untested(blocks: pd.DataFrame) -> str:
    n = int(min(blocks["n"].min(), blocks["n_baseline"].min()))
    return f"No difference can be tested: {counted(n, 'image')} {'has' if n == 1 else 'have'} no spread."


def difference_texts(row: Any) -> dict[str, str]:
    """Return value, baseline, difference, interval, d and q of a row of differences as text, by their headings."""
    numbers = aligned_numbers([row.value, row.baseline_value, row.difference], (row.ci_low, row.ci_high))
    bounds = f"{numbers[3]} to {numbers[4]}" if numbers[3] and numbers[4] else ""
    q = "" if pd.isna(row.q) else "< 0.001" if row.q < 0.001 else f"{row.q:.2g}"
    d = with_digits(float(row.effect), 3)
    return dict(zip(DIFFERENCE, [*numbers[:3], bounds, d, q], strict=True))


def _difference(row: Any) -> str:
    """Describe one difference with its interval, q, d and n."""
    value, baseline, difference, bounds, d, q = difference_texts(row).values()
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
    return f"{value} and {baseline}; the difference of {difference} is not significant ({'; '.join(inside)})"


def _similarity(comparison: Comparison, label: str) -> list[str]:
    """Describe the similarity of the two models' final features."""
    rows = comparison.similarity
    rows = rows[(rows["label_1"] == label) & (rows["label_2"] == comparison.baseline)]
    texts = []
    for row in rows.itertuples(index=False):
        value, low, high = aligned_numbers([row.value], (row.ci_low, row.ci_high))
        what = {"cls": "CLS features", "patch": "mean-patch features"}.get(row.group, row.group)
        texts.append(f"{value} for {what}" + (f" ({low} to {high})" if low and high else ""))
    if not texts:
        return []
    n = int(rows["n"].max())
    return [f"CKA of the final features (1 = same arrangement of the images): {', '.join(texts)}; n = {n}."]
