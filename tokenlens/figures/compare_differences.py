"""Largest standardized differences from the baseline, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._comparison_rows import TESTED, comparison_note, numbers_of
from tokenlens.figures._model_labels import model_labels
from tokenlens.figures._rows import as_list
from tokenlens.figures.base import NothingToDraw, quantity_title
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import FAINT, GRID, INK, PAPER, model_colour, model_look, plain_number

KIND = "comparison"
TITLE = "Largest differences from the baseline"
ORDER = 210
CAPTION = (
    "Differences from the baseline in means over blocks, divided by the pooled standard deviation over images "
    "(Cohen's d; the axis is linear within ±1 and logarithmic beyond), with 95 % intervals, largest first. For each "
    "metric, part and group only the site with the largest difference is shown. Faint, hollow markers: not "
    "significant (Benjamini–Hochberg q ≥ 0.05). On the right: the difference itself with its unit, for the model "
    "with the largest d."
)
METRICS = ()
"""Any metric with a value per image."""

MOST = {"double": 18, "single": 14}
"""Largest number of quantities that are legible."""


def frame(comparison: Comparison, count: int | None = None, metrics: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return the quantities with the largest differences from the baseline, for each model.

    Args:
        count: number of quantities; by default as many as are legible.
        metrics: only these metrics.

    Raises:
        NothingToDraw: if no difference has a standard deviation over images.
        ValueError: if ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rows = comparison.summary
    if metrics is not None:
        rows = rows[rows["metric"].isin(as_list(metrics))]
    rows = rows[np.isfinite(rows["effect"].astype(float)) & rows["difference"].notna()].copy()
    if rows.empty:
        which = "any metric" if metrics is None else ", ".join(as_list(metrics))
        raise NothingToDraw(f"no difference in {which} has a standard deviation over images")
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = rows["difference"] / rows["effect"]
        rows["effect_low"], rows["effect_high"] = rows["ci_low"] / deviation, rows["ci_high"] / deviation
    same = (rows["effect"] == 0) | ~np.isfinite(rows["effect_low"] + rows["effect_high"])
    rows.loc[same, ["effect_low", "effect_high"]] = np.nan
    rows["model_number"] = rows["label"].map(numbers_of(comparison))
    quantity, where = ["metric", "part", "group"], ["metric", "part", "group", "site"]
    rows["size"] = rows["effect"].abs() + 1e9 * rows["significant"].astype(float)  # significant ones come first
    largest = rows.groupby(where, sort=False, as_index=False)["size"].max()
    largest = largest.sort_values("size", ascending=False, kind="stable").drop_duplicates(quantity)
    chosen = largest.head(MOST["double"] if count is None else count).reset_index(drop=True)
    chosen["rank"] = np.arange(len(chosen))
    found = rows.merge(chosen[[*where, "rank"]], on=where)
    keys = ["rank", "label", "model_number", "baseline", *where]
    numbers = ["effect", "effect_low", "effect_high", "value", "baseline_value", "difference", "ci_low", "ci_high"]
    columns = [*keys, *numbers, *TESTED]
    return found.sort_values(["rank", "model_number"])[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw one line per quantity with a marker per model."""
    if paper().narrow:
        frame = frame[frame["rank"] < MOST["single"]]
    ranks = sorted(frame["rank"].unique())
    numbers = sorted(frame["model_number"].unique())
    room = characters((0.40 if paper().narrow else 0.42) * paper().width, "small")
    labels = [wrapped(quantity_title(frame[frame["rank"] == rank].iloc[0]), room) for rank in ranks]
    lines = max(max(label.count("\n") + 1 for label in labels), 0.7 * len(numbers))
    page = canvas(ax, 1, 1, 22 + len(ranks) * (1.6 + 2.3 * lines))
    panel = page.axes[0, 0]
    for index, number in enumerate(numbers):
        shift = (index - (len(numbers) - 1) / 2) * 0.7 / len(numbers)
        _points(panel, frame[frame["model_number"] == number], int(number), shift)
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    for rank in ranks:
        panel.axhline(rank, color=GRID, linewidth=0.5, zorder=0)
    panel.set_ylim(max(ranks) + 0.6, min(ranks) - 0.6)
    panel.set_yticks(ranks, labels, fontsize="small", linespacing=1.1)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    _effect_axis(panel, frame)
    panel.set_xlabel("difference / SD over images (Cohen's d)")
    beside, right = panel.get_yaxis_transform(), 1.04 if paper().narrow else 1.02
    for rank in ranks:
        inside = frame[frame["rank"] == rank]
        row = inside.loc[inside["effect"].abs().idxmax()]
        colour = INK if row["significant"] else FAINT
        text = ("\n" if paper().narrow else " ").join((_difference(row), row["unit"]))
        panel.text(right, rank, text, transform=beside, va="center", fontsize="small", color=colour, linespacing=1.1)
    panel.text(right, min(ranks) - 0.6, "difference", transform=beside, va="bottom", fontsize="small")
    page.legend(model_labels(frame).handles(), columns=2)
    count = int(frame["significant"].sum())
    note = f"against {frame['baseline'].iloc[0]} · means over blocks; bars: 95 % interval · {count} of {len(frame)} "
    comparison_note(page, frame, note + ("has q < 0.05" if count == 1 else "have q < 0.05"))
    return page.figure


def _points(panel: Axes, rows: pd.DataFrame, number: int, shift: float) -> None:
    """Draw one model's differences with their intervals, faint if not significant."""
    for sure in (True, False):
        part = rows[rows["significant"] == sure]
        y = part["rank"].to_numpy(dtype=float) + shift
        x, low, high = (part[name].to_numpy(dtype=float) for name in ("effect", "effect_low", "effect_high"))
        alpha = 1.0 if sure else 0.45
        panel.hlines(y, low, high, color=model_colour(number), linewidth=1.0, alpha=alpha, zorder=3)
        look = {**model_look(number), "linestyle": "none", "alpha": alpha}
        panel.plot(x, y, zorder=4, **(look if sure else {**look, "markerfacecolor": PAPER}))


def _effect_axis(panel: Axes, frame: pd.DataFrame) -> None:
    """Set up an axis that is linear within ±1 and logarithmic beyond, so that d = 0.3 and d = 30 are both legible."""
    values = frame[["effect", "effect_low", "effect_high"]].to_numpy(dtype=float)
    low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
    panel.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    ticks = effect_ticks(low, high, few=paper().narrow)
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(plain_number))
    panel.set_xlim(ticks[0] * 1.1 - 0.1, ticks[-1] * 1.1 + 0.1)


def effect_ticks(low: float, high: float, few: bool = False) -> list[float]:
    """Return ticks on both sides of 0 that enclose the values from ``low`` to ``high``.

    >>> effect_ticks(-3.2, 0.1), effect_ticks(-0.4, 40)
    ([-5.0, -2.0, -1.0, -0.5, 0.0, 0.5], [-1.0, 0.0, 1.0, 10.0, 50.0])
    """

    def side(reach: float) -> list[float]:
        """Return the ticks from 0 to the first that is not below ``reach``."""
        if reach <= 0:
            return [0.0]
        steps = [0.5, *(digit * 10.0**power for power in range(16) for digit in (1, 2, 5))]
        end = next((step for step in steps if step >= reach), steps[-1])
        if few or max(-low, high) > 10:  # decades and the last one, unless that is close to a decade
            end = max(end, 1.0)
            steps = [step for step in steps if np.log10(step).is_integer() and step <= end / (2.5 if few else 1.9)]
        return [0.0, *(step for step in steps if step < end), end]

    return sorted({0.0 - tick for tick in side(-low)} | set(side(high)))


def _difference(row: pd.Series) -> str:
    """Format the difference with its sign."""
    value = float(row["difference"])
    text = f"{value:+.2g}" if abs(value) < 1e4 else f"{value:+.1e}"
    return text.replace("-", "−").replace("e+0", "e")
