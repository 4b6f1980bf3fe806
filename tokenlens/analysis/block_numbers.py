"""Numbers of all blocks at norm1 with their intervals, for the verdicts: value, low and high end, (3, blocks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis

Array = NDArray[np.float64]


class NumbersMissing(Exception):
    """A metric that a check needs is missing; the second argument is the reason, if known."""


@overload
def read_blocks(analysis: Analysis, metric: str, part: str, group: str) -> Array: ...
@overload
def read_blocks(analysis: Analysis, metric: str, part: str, group: str, *, optional: Literal[True]) -> Array | None: ...
def read_blocks(analysis: Analysis, metric: str, part: str, group: str, *, optional: bool = False) -> Array | None:
    """Return value, low and high end of the interval in each block at norm1; NaN where there is no interval.

    Raises:
        NumbersMissing: if the table has none, unless they are optional.
    """
    table = analysis.table
    rows = table[(table["metric"] == metric) & (table["part"] == part) & (table["site"] == "norm1")]
    with_cls = rows.loc[rows["group"] == "cls-patch", "block"]  # CaiT has CLS in its last blocks only
    rows = rows[(rows["group"] == group) & rows["block"].isin(with_cls)].sort_values("block")
    if rows.empty:
        if optional:
            return None
        raise NumbersMissing(metric)
    numbers: Array = rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float).T
    return numbers


def count_images(analysis: Analysis, metric: str) -> int:
    """Return the number of images behind a metric."""
    return int(analysis.table.loc[analysis.table["metric"] == metric, "n"].max())


def above(bounds: Array, threshold: float | Array) -> Array:
    """Return 1 where the whole interval is at or above the threshold, 0 where it is below, 0.5 where that is open.

    >>> above(np.array([[1.0, 1.0, 1.0], [0.8, 0.2, np.nan], [1.2, 1.8, np.nan]]), 0.5).tolist()
    [1.0, 0.5, 0.5]
    """
    _, low, high = bounds
    return np.where(low >= threshold, 1.0, np.where(high < threshold, 0.0, 0.5))


def ratio(one: Array, two: Array) -> Array:
    """Return one / two for positive numbers, with an interval that is conservative for numbers of the same images.

    NaN where ``two`` may be 0 or below.
    """
    positive = np.where(two > 0, two, np.nan)
    ends = one[1:3, None] / positive[None, 1:3]
    lost = np.isnan(ends).any((0, 1))
    low, high = (np.where(lost, np.nan, end) for end in (ends.min((0, 1)), ends.max((0, 1))))
    return np.stack([one[0] / positive[0], low, high])


def describe_trend(fall: Array) -> str:
    """Describe how a number changes with depth, by Spearman's rank correlation."""
    if len(fall) < 5:
        return f"{len(fall)} block{'s' * (len(fall) != 1)}: too few for a trend with depth."
    if np.ptp(fall) == 0:
        return "The fall is the same in all blocks."
    rho, p = stats.spearmanr(np.arange(len(fall)), fall)
    how = "does not clearly change" if p >= 0.05 else ("grows" if rho > 0 else "shrinks")
    written = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"The fall {how} with depth (Spearman's ρ = {format_number(float(rho))}, {written})."


def format_number(value: float) -> str:
    """Format a number to two decimals, with a true minus sign."""
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def format_interval(bounds: Array) -> str:
    """Format the ends of an interval."""
    if np.isnan(bounds[1:]).any():
        return "no interval"
    return f"95 % interval {format_number(bounds[1])} to {format_number(bounds[2])}"
